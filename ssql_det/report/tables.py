"""A published detection table beside our own rows: for each method and bit-width the figure, our mean, the difference.

A table is of one data set and one scope. Rows of another config or calibration stand on a line of their own.

>>> table = compare(6, read_rows(["results.jsonl"]), scope="backbone")
>>> table.lines[0].cells["bbox/AP50"]
Cell(published=58.9, measured=Measured(mean=58.6, std=0.2, n=3), difference=-0.3)
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.filling import CONFIGS, DATASETS, filling_command
from ssql_det.report.grouping import UNNAMED, Group, by_bits, grouped
from ssql_det.report.notes import notes
from ssql_det.report.published import Column, PublishedTable, published_table
from ssql_det.report.reading import newest

SCOPES = ("all", "backbone")
COSTS = ("MB", "GFLOPs", "GBOPs")


@dataclass(frozen=True)
class Measured:
    """The mean of ``n`` rows and their sample standard deviation; of no finite number, ``None`` and n = 0."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """``measured`` is ``None`` where there are no rows; ``difference`` is its mean less the published figure."""

    published: float | None
    measured: Measured | None
    difference: float | None


@dataclass(frozen=True)
class Line:
    """A method at a bit-width. Without rows, ``config`` and ``calibration`` are empty.

    ``filled_by`` is the command that fills the line's empty cells, or nothing when none is empty.
    """

    method: str
    config: str
    calibration: str
    bits: str
    cells: Mapping[str, Cell]
    filled_by: str


@dataclass(frozen=True)
class Comparison:
    """``is_comparable`` is false for other data than the published table's: then no difference is given."""

    number: int
    title: str
    source: str
    dataset: str
    scope: str
    is_comparable: bool
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def compare(number: int, found: Sequence[Row], scope: str = "all", dataset: str = "") -> Comparison:
    """The published table of that number beside these rows; without any, all that there is to fill."""
    if number not in DATASETS:
        known = "; ".join(f"{each} ({published_table(each).title})" for each in DATASETS)
        raise UserError(f"there is no Table {number} of detectors; there are {known}")
    table = published_table(number)
    dataset = dataset or DATASETS[number]
    named = {*CONFIGS, *(row.dataset for row in found)}
    if found and dataset not in named:
        raise UserError(f"no row is of {dataset!r}{did_you_mean(dataset, named)}; --dataset is as rows name it")
    kept = newest([row for row in found if row.scope == scope and row.dataset == dataset])
    groups = grouped(kept, table)
    costs = [name for name in COSTS if any(name in row.metrics for row in kept)]
    return Comparison(
        number=number,
        title=table.title,
        source=table.source,
        dataset=dataset,
        scope=scope,
        is_comparable=dataset == DATASETS[number],
        metrics=(*table.metrics, *costs),
        lines=tuple(line for group, rows in groups for line in _lines(group, rows, table, costs, scope, dataset)),
        notes=tuple(notes(table, found, groups, scope, dataset)),
    )


def _lines(
    group: Group, rows: Sequence[Row], table: PublishedTable, costs: Sequence[str], scope: str, dataset: str
) -> list[Line]:
    published = table.find(group.method).figures if group.method in table.methods else {}
    comparable = dataset == DATASETS[table.number]
    cells = {
        bits: {
            metric: _cell(published.get(Column(bits, metric)), of_bits, metric, comparable)
            for metric in (*table.metrics, *costs)
        }
        for bits, of_bits in by_bits(rows, table.bits).items()
    }
    empty = [bits for bits in cells if any(cells[bits][metric].measured is None for metric in table.metrics)]
    method = "" if group.method == UNNAMED else group.method
    command = filling_command(table.number, method, empty, scope, dataset, group.config, group.calibration)
    return [
        Line(group.method, group.config, group.calibration, bits, of_bits, command if bits in empty else "")
        for bits, of_bits in cells.items()
    ]


def _cell(published: float | None, rows: Sequence[Row], metric: str, comparable: bool) -> Cell:
    figures = [finite_or_none(row.metrics[metric]) for row in rows if metric in row.metrics]
    if not figures:
        return Cell(published, None, None)
    values = [value for value in figures if value is not None]
    if not values:
        return Cell(published, Measured(None, None, 0), None)
    mean = statistics.fmean(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    difference = mean - published if comparable and published is not None else None
    return Cell(published, Measured(mean, std, len(values)), difference)
