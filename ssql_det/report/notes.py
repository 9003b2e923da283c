"""What a reader must know beside the numbers of a table: where ours are from, what was left out, what is in doubt.

>>> list(notes(published_table(6), rows, [], [], "voc_2007_test", is_comparable=True))
['Left out: 3 rows of voc_2007_test, scope backbone.']
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.grouping import Group, by_bits
from ssql_det.report.names import described, scheme_of
from ssql_det.report.published import PublishedTable


def notes(
    table: PublishedTable,
    found: Sequence[Row],
    asked: Sequence[Row],
    groups: Sequence[tuple[Group, list[Row]]],
    dataset: str,
    is_comparable: bool,
) -> Iterator[str]:
    """``found`` are all rows that were read, ``asked`` those the table is of, ``groups`` the newest of these."""
    kept = [row for _, rows in groups for row in rows]
    if not is_comparable:
        kind = "toy data" if dataset.startswith("toy_") else "other data than the published table's"
        yield f"{dataset} is {kind}: not comparable with the published figures, so no difference is given."
    if kept:
        yield f"Measured with {_origin(kept)}."
        yield from _epochs(table)
    kinds = Counter(map(_kind, found)) - Counter(map(_kind, asked))
    if kinds:
        yield f"Left out: {'; '.join(f'{_count(kinds[kind])} of {kind}' for kind in sorted(kinds))}."
    if len(asked) > len(kept):
        yield f"Replaced by a newer row of the same measurement: {_count(len(asked) - len(kept))}."
    for group, rows in groups:
        name = " · ".join(part for part in (group.backbone, group.method) if part)
        for bits, averaged in by_bits(rows).items():
            yield from _doubts(f"{name} at {bits}", averaged)
    for row in table.rows:
        if row.settings:
            yield f"{row.method}: {row.described}."
    for doubt in table.suspect:
        yield f"Published figures in doubt: {doubt}."


def _epochs(table: PublishedTable) -> Iterator[str]:
    printed = {row.epochs for row in table.rows}
    if len(printed) == 1 and None not in printed:
        yield f"Published are {printed.pop()} epochs of pretraining; how many ours had, rows do not say."


def _origin(kept: Sequence[Row]) -> str:
    """Of probes nothing states an engine."""
    values = {
        "config": sorted({row.config or described(row.protocol) for row in kept}),
        "scheme": sorted({scheme_of(row) for row in kept}),
        "calibration": sorted({str(row.calibration) for row in kept}),
        "engine": sorted({row.engine for row in kept}),
    }
    stated = {name: each for name, each in values.items() if each != [""] or name != "engine"}
    return "; ".join(f"{name} {' or '.join(value or '(not stated)' for value in stated[name])}" for name in stated)


def _kind(row: Row) -> str:
    return f"{row.dataset}, scope {row.scope}"


def _doubts(where: str, averaged: Sequence[Row]) -> Iterator[str]:
    """Rows that are averaged although they may not be repetitions of one another."""
    checkpoints = Counter(row.seed for row in averaged if row.seed >= 0)  # Detectron2's -1: no seed was fixed
    for seed in sorted(checkpoints):
        if checkpoints[seed] > 1:
            yield f"{where} averages {checkpoints[seed]} checkpoints of the one seed {seed}."
    lacking = sum(None in map(finite_or_none, row.metrics.values()) for row in averaged)
    if lacking:
        yield f"{where}: {_count(lacking)} with a metric that is not a number; means are without it."
    if len({row.metrics.get("MB") for row in averaged}) > 1:
        yield f"{where} averages detectors of different size; were bits of single modules set?"


def _count(rows: int) -> str:
    return f"{rows} row" if rows == 1 else f"{rows} rows"
