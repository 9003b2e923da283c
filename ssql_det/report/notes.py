"""What a reader must know beside the numbers of a table: where ours are from, what was left out, what is in doubt.

>>> list(notes(published_table(6), rows, grouped([], published_table(6)), "all", "voc_2007_test"))
['Left out: 3 rows of voc_2007_test, scope backbone.']
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.filling import DATASETS
from ssql_det.report.grouping import Group, by_bits
from ssql_det.report.published import PublishedTable


def notes(
    table: PublishedTable, found: Sequence[Row], groups: Sequence[tuple[Group, list[Row]]], scope: str, dataset: str
) -> Iterator[str]:
    """``found`` are all rows that were read, ``groups`` those that the table is made of."""
    kept = [row for _, rows in groups for row in rows]
    if dataset != DATASETS[table.number]:
        kind = "toy data" if dataset.startswith("toy_") else "other data than the published table's"
        yield f"{dataset} is {kind}: not comparable with the published figures, so no difference is given."
    if kept:
        yield f"Measured with {_origin(kept)}."
    yield from _left_out(found, kept, scope, dataset)
    for group, rows in groups:
        for bits, averaged in by_bits(rows).items():
            yield from _doubts(f"{group.method} at {bits}", averaged)
    for doubt in table.suspect:
        yield f"Published figures in doubt: {doubt}."


def _origin(kept: Sequence[Row]) -> str:
    names = ("config", "calibration", "engine")
    values = [sorted({getattr(row, name) or "(not stated)" for row in kept}) for name in names]
    return "; ".join(f"{name} {' or '.join(each)}" for name, each in zip(names, values, strict=True))


def _left_out(found: Sequence[Row], kept: Sequence[Row], scope: str, dataset: str) -> Iterator[str]:
    kinds = Counter((row.dataset, row.scope) for row in found)
    of_this = kinds.pop((dataset, scope), 0)
    if kinds:
        listed = "; ".join(f"{_count(kinds[kind])} of {kind[0]}, scope {kind[1]}" for kind in sorted(kinds))
        yield f"Left out: {listed}."
    if of_this > len(kept):
        yield f"Replaced by a newer row of the same measurement: {_count(of_this - len(kept))}."


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
