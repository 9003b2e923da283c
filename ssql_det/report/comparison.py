"""A published table beside our result rows: per method and bit-width the published value, our mean, the difference.

A comparison is of one dataset and one scope. Rows of different config, scheme or calibration are separate lines.

>>> comparison = compare_with_published(6, [])
>>> comparison.lines[0].method, comparison.lines[0].bits, comparison.lines[0].cells["bbox/AP50"]
('random init.', 'FP', Cell(published=58.9, measured=None, difference=None))
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
    """Mean and sample standard deviation of ``n`` rows; ``None`` and n = 0 where no value is finite."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """``measured`` is ``None`` where there are no rows; ``difference`` is its mean minus the published value."""

    published: float | None
    measured: Measurement | None
    difference: float | None


@dataclass(frozen=True, kw_only=True)
class ComparisonLine(RowGroup):
    """A group of rows, or a published line without rows, at one bit-width; cells by metric.

    ``fill_command`` measures the empty cells, if there are any. A line without rows and without such a command
    ``is_published_only``. ``settings`` tells the published rows of an ablation apart.
    """

    bits: str
    cells: Mapping[str, Cell]
    fill_command: str
    is_published_only: bool
    settings: str = ""


@dataclass(frozen=True)
class Comparison:
    """Not ``is_comparable``: the rows are of another dataset than the published table, so no difference is given.

    ``scope`` is empty for a table that is only published.
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


def compare_with_published(number: int, rows: Sequence[Row], scope: str = "all", dataset: str = "") -> Comparison:
    """Set rows beside the published table of that number; without rows, all its cells are empty.

    ``scope`` applies to detectors; probes always have the scope "backbone". ``dataset`` defaults to the published one.
    """
    table, source = load_published_table(number), get_source(number)
    known_datasets = {*DETECTOR_CONFIGS, *list_datasets(), *(row.dataset for row in rows)}
    hint = did_you_mean(dataset, known_datasets)
    if dataset and dataset not in known_datasets and (rows or hint):  # without rows it may be a user's own
        raise UserError(f"no row has the dataset {dataset!r}{hint}; give --dataset as rows name it")
    scope = source.resolve_scope(scope)
    dataset = (dataset or source.dataset) if source.dataset else ""
    selected = [row for row in rows if source.dataset and (row.dataset, row.scope) == (dataset, scope)]
    selected = [row for row in selected if _may_belong_to(row, table)]
    newest = keep_newest(selected)
    published_rows = {source.get_published_line(row, dataset): row for row in table.rows}
    groups = group_rows(newest, list(published_rows), lambda row: source.get_group(row, table))
    is_comparable = dataset == source.dataset
    metrics = (*table.metrics, *(name for name in COSTS if any(name in row.metrics for row in newest)))
    lines = (
        line
        for group, group_members in groups
        for line in _make_lines(
            group, group_members, published_rows.get(group.published_line), metrics, table, source, scope
        )
    )
    return Comparison(
        number=number,
        title=table.title,
        source=table.source,
        dataset=dataset or ", ".join(dict.fromkeys(row.dataset for row in table.rows)),
        scope=scope,
        is_comparable=is_comparable,
        metrics=metrics,
        lines=tuple(lines),
        notes=tuple(_make_notes(table, rows, selected, groups, dataset, is_comparable)),
    )


def _may_belong_to(row: Row, table: PublishedTable) -> bool:
    """Whether the row has a metric of the table, or no metric of any task (those with a slash in their name)."""
    task_metrics = {metric for metric in row.metrics if "/" in metric}
    return not task_metrics or not task_metrics.isdisjoint(table.metrics)


def _make_lines(
    group: RowGroup,
    rows: Sequence[Row],
    published_row: PublishedRow | None,
    metrics: Sequence[str],
    table: PublishedTable,
    source: TableSource,
    scope: str,
) -> Iterator[ComparisonLine]:
    published = published_row.values if published_row else {}
    averages = [
        row for name in table.average_columns for row in average_over_bits(rows, name, table.bit_widths, table.metrics)
    ]
    cells = {
        bits: {
            metric: _make_cell(published.get(Column(bits, metric)), bits_rows, metric, group.dataset == source.dataset)
            for metric in metrics
        }
        for bits, bits_rows in group_by_bits([*rows, *averages], table.bit_columns).items()
    }
    empty = [bits for bits in cells if any(cells[bits][metric].measured is None for metric in table.metrics)]
    to_measure = [bits for bits in empty if bits not in table.average_columns]
    command = source.get_fill_command(table, group, to_measure, scope) if to_measure else ""
    for bits, bits_cells in cells.items():
        yield ComparisonLine(
            **vars(group),
            bits=bits,
            cells=bits_cells,
            fill_command=command if bits in empty else "",
            is_published_only=not rows and not command,
            settings=published_row.settings_text if published_row else "",
        )


def _make_cell(published: float | None, rows: Sequence[Row], metric: str, is_comparable: bool) -> Cell:
    values = [finite_or_none(row.metrics[metric]) for row in rows if metric in row.metrics]
    if not values:
        return Cell(published, None, None)
    finite = [value for value in values if value is not None]
    if not finite:
        return Cell(published, Measurement(None, None, 0), None)
    mean = statistics.fmean(finite)
    std = statistics.stdev(finite) if len(finite) > 1 else None
    difference = mean - published if is_comparable and published is not None else None
    return Cell(published, Measurement(mean, std, len(finite)), difference)


def _make_notes(
    table: PublishedTable,
    rows: Sequence[Row],
    selected: Sequence[Row],
    groups: Sequence[tuple[RowGroup, list[Row]]],
    dataset: str,
    is_comparable: bool,
) -> Iterator[str]:
    """What a reader must know beside the numbers: how ours were measured, which rows were left out, what to doubt.

    ``selected`` are those of ``rows`` that belong to the table; ``groups`` hold the newest of these.
    """
    newest = [row for _, group_members in groups for row in group_members]
    if not is_comparable:
        kind = "toy data" if dataset.startswith("toy_") else "not the published table's dataset"
        yield f"{dataset} is {kind}: not comparable with the published values, so no difference is given."
    if newest:
        yield f"Measured with {_describe_settings(newest)}."
        yield from _note_epochs(table)
    left_out = Counter(map(_describe_data, rows)) - Counter(map(_describe_data, selected))
    if left_out:
        yield f"Left out: {'; '.join(f'{_count(left_out[data])} of {data}' for data in sorted(left_out))}."
    if len(selected) > len(newest):
        yield f"Replaced by a newer row of the same measurement: {_count(len(selected) - len(newest))}."
    for group, group_members in groups:
        name = " · ".join(part for part in (group.backbone, group.method) if part)
        for bits, averaged in group_by_bits(group_members).items():
            yield from _warn_of_averages(f"{name} at {bits}", averaged)
    for row in table.rows:
        if row.settings:
            yield f"{row.method}: {row.settings_text}."
    for suspicion in table.suspect:
        yield f"Possible misprint in the published table: {suspicion}."


def _note_epochs(table: PublishedTable) -> Iterator[str]:
    epochs = {row.epochs for row in table.rows}
    if len(epochs) == 1 and None not in epochs:
        yield f"The published backbones were pretrained for {epochs.pop()} epochs; our rows do not record theirs."


def _describe_settings(rows: Sequence[Row]) -> str:
    """The engine is left out where no row names one, as those of probes do not."""
    values = {
        "config": sorted({row.config or format_protocol(row.protocol) for row in rows}),
        "scheme": sorted({format_scheme(row) for row in rows}),
        "calibration": sorted({str(row.calibration) for row in rows}),
        "engine": sorted({row.engine for row in rows}),
    }
    named = {name: each for name, each in values.items() if each != [""] or name != "engine"}
    return "; ".join(f"{name} {' or '.join(value or '(not stated)' for value in named[name])}" for name in named)


def _describe_data(row: Row) -> str:
    return f"{row.dataset}, scope {row.scope}"


def _warn_of_averages(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """Warn of averaged rows that may not be repetitions of one experiment."""
    checkpoints = Counter(row.seed for row in rows if row.seed >= 0)  # Detectron2's -1: no seed was fixed
    for seed in sorted(checkpoints):
        if checkpoints[seed] > 1:
            yield f"{name} averages {checkpoints[seed]} checkpoints of the same seed {seed}."
    without_value = sum(None in map(finite_or_none, row.metrics.values()) for row in rows)
    if without_value:
        yield f"{name}: {_count(without_value)} with a metric that is not a number; means leave it out."
    if len({row.metrics.get("MB") for row in rows}) > 1:
        yield f"{name} averages detectors of different size; were bits of single modules set?"


def _count(rows: int) -> str:
    return f"{rows} row" if rows == 1 else f"{rows} rows"
