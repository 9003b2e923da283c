"""A published table beside our own rows: for each method and bit-width the figure, our mean, the difference.

A table is of one data set and one scope. Rows of another config, scheme or calibration stand on a line of their own.
What this project cannot produce yet is there, too, published only.

>>> table = compare_with_published(6, read_rows(["results.jsonl"]), scope="backbone")
>>> table.lines[0].cells["bbox/AP50"]
Cell(published=58.9, measured=Measurement(mean=58.6, std=0.2, n=3), difference=-0.3)
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.display_names import format_protocol, format_scheme
from ssql_det.report.published import Column, PublishedRow, PublishedTable, load_published_table
from ssql_det.report.row_groups import RowGroup, average_over_bits, group_by_bits, group_rows, keep_newest
from ssql_det.report.table_sources import DETECTOR_CONFIGS, TableSource, get_source, list_datasets

SCOPES = ("all", "backbone")
COSTS = ("MB", "GFLOPs", "GBOPs")


@dataclass(frozen=True)
class Measurement:
    """The mean of ``n`` rows and their sample standard deviation; of no finite number, ``None`` and n = 0."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """``measured`` is ``None`` where there are no rows; ``difference`` is its mean less the published figure."""

    published: float | None
    measured: Measurement | None
    difference: float | None


@dataclass(frozen=True, kw_only=True)
class ComparisonLine(RowGroup):
    """What rows may be averaged, or what is published without rows, at a bit-width.

    ``filled_by`` is the command that fills the line's empty cells, or nothing when none is empty. Where there are no
    rows, and no command yet, the line ``is_published_only``. ``settings`` are what else a published line is named by.
    """

    bits: str
    cells: Mapping[str, Cell]
    filled_by: str
    is_published_only: bool
    settings: str = ""


@dataclass(frozen=True)
class Comparison:
    """``is_comparable`` is false for other data than the published table's: then no difference is given.

    ``scope`` is empty for a table that is published only.
    """

    number: int
    title: str
    source: str
    dataset: str
    scope: str
    is_comparable: bool
    metrics: tuple[str, ...]
    lines: tuple[ComparisonLine, ...]
    notes: tuple[str, ...]


def compare_with_published(number: int, found: Sequence[Row], scope: str = "all", dataset: str = "") -> Comparison:
    """The published table of that number beside these rows; without any, all that there is to fill.

    ``scope`` is that of detectors; what is probed is a backbone. ``dataset`` is the published one if it is not given.
    """
    table, kind = load_published_table(number), get_source(number)
    named = {*DETECTOR_CONFIGS, *list_datasets(), *(row.dataset for row in found)}
    near = did_you_mean(dataset, named)
    if dataset and dataset not in named and (found or near):  # without rows it may be one's own, yet to be filled
        raise UserError(f"no row is of {dataset!r}{near}; --dataset is as rows name it")
    scope, dataset = kind.scope(scope), (dataset or kind.dataset) if kind.dataset else ""
    asked = [row for row in found if kind.dataset and (row.dataset, row.scope) == (dataset, scope)]
    asked = [row for row in asked if _is_answer(row, table)]
    kept = keep_newest(asked)
    printed = {kind.line(row, dataset): row for row in table.rows}
    groups = group_rows(kept, list(printed), lambda row: kind.group(row, table))
    is_comparable = dataset == kind.dataset
    metrics = (*table.metrics, *(name for name in COSTS if any(name in row.metrics for row in kept)))
    return Comparison(
        number=number,
        title=table.title,
        source=table.source,
        dataset=dataset or ", ".join(dict.fromkeys(row.dataset for row in table.rows)),
        scope=scope,
        is_comparable=is_comparable,
        metrics=metrics,
        lines=tuple(
            line
            for group, rows in groups
            for line in _lines(group, rows, printed.get(group.line), metrics, table, kind, scope)
        ),
        notes=tuple(_notes(table, found, asked, groups, dataset, is_comparable)),
    )


def _is_answer(row: Row, table: PublishedTable) -> bool:
    """Whether it has a metric of the table; one that has none of any task may be of any table."""
    of_tasks = {metric for metric in row.metrics if "/" in metric}
    return not of_tasks or not of_tasks.isdisjoint(table.metrics)


def _lines(
    group: RowGroup,
    rows: Sequence[Row],
    published: PublishedRow | None,
    metrics: Sequence[str],
    table: PublishedTable,
    kind: TableSource,
    scope: str,
) -> Iterator[ComparisonLine]:
    figures = published.figures if published else {}
    over_bits = [row for name in table.averages for row in average_over_bits(rows, name, table.widths, table.metrics)]
    cells = {
        bits: {
            metric: _cell(figures.get(Column(bits, metric)), of_bits, metric, group.dataset == kind.dataset)
            for metric in metrics
        }
        for bits, of_bits in group_by_bits([*rows, *over_bits], table.bits).items()
    }
    empty = [bits for bits in cells if any(cells[bits][metric].measured is None for metric in table.metrics)]
    lacking = [bits for bits in empty if bits not in table.averages]
    command = kind.command(table, group, lacking, scope) if lacking else ""
    for bits, of_bits in cells.items():
        yield ComparisonLine(
            **vars(group),
            bits=bits,
            cells=of_bits,
            filled_by=command if bits in empty else "",
            is_published_only=not rows and not command,
            settings=published.described if published else "",
        )


def _cell(published: float | None, rows: Sequence[Row], metric: str, comparable: bool) -> Cell:
    figures = [finite_or_none(row.metrics[metric]) for row in rows if metric in row.metrics]
    if not figures:
        return Cell(published, None, None)
    values = [value for value in figures if value is not None]
    if not values:
        return Cell(published, Measurement(None, None, 0), None)
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    difference = mean - published if comparable and published is not None else None
    return Cell(published, Measurement(mean, std, len(values)), difference)


def _notes(
    table: PublishedTable,
    found: Sequence[Row],
    asked: Sequence[Row],
    groups: Sequence[tuple[RowGroup, list[Row]]],
    dataset: str,
    is_comparable: bool,
) -> Iterator[str]:
    """What a reader must know beside the numbers: where ours are from, what was left out, what is in doubt.

    ``found`` are all rows that were read, ``asked`` those the table is of, ``groups`` the newest of these.
    """
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
        for bits, averaged in group_by_bits(rows).items():
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
        "config": sorted({row.config or format_protocol(row.protocol) for row in kept}),
        "scheme": sorted({format_scheme(row) for row in kept}),
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
