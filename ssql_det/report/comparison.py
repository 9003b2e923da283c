"""Compare a published table with result rows: per method and bit-width the published value, the measured mean, the
difference.

A comparison covers one dataset and one scope (what is quantized: the backbone, or all of a detector). It has a line
for each bit-width of each group of rows: only rows that agree in backbone, method, config, scheme and calibration are
averaged.

>>> comparison = compare_with_published(6, [])
>>> comparison.lines[0].method, comparison.lines[0].bits, comparison.lines[0].cells["bbox/AP50"]
('random init.', 'FP', Cell(published=58.9, measured=None, difference=None))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.display_names import format_protocol, format_scheme
from ssql_det.report.published import Column, PublishedRow, PublishedTable, load_published_table
from ssql_det.report.row_groups import (
    Measurement,
    RowGroup,
    average_over_bits,
    group_by_bits,
    group_rows,
    keep_newest,
    measure,
)
from ssql_det.report.table_sources import (
    DETECTOR_CONFIGS,
    TRAINED_AT_EACH_WIDTH,
    TableSource,
    get_source,
    list_datasets,
)

SCOPES = ("all", "backbone")
COSTS = ("MB", "GFLOPs", "GBOPs")  # of rows: 10^6 bytes of parameters, 10^9 multiply-adds, 10^9 bit-operations


@dataclass(frozen=True)
class Cell:
    """``measured`` is ``None`` if no row has the metric. ``difference`` is the measured mean minus ``published``;
    ``None`` if one of them is missing or the comparison is of another dataset."""

    published: float | None
    measured: Measurement | None
    difference: float | None


@dataclass(frozen=True, kw_only=True)
class ComparisonLine(RowGroup):
    """The values of one group of result rows, or of a published row without any, at one bit-width; ``cells`` by metric.

    ``measure_command``: the command that measures the empty cells; "" if no cell is empty or no command can.
    ``is_published_only``: there are no result rows, and no command that makes them.
    ``settings``: those of the published row, which distinguish the rows of an ablation.
    """

    bits: str
    cells: Mapping[str, Cell]
    measure_command: str
    is_published_only: bool
    settings: str = ""


@dataclass(frozen=True)
class Comparison:
    """``is_comparable``: the rows are of the published table's dataset; otherwise no difference is given.

    ``scope``: what is quantized, ``all`` or ``backbone``; empty for a table that no command can reproduce yet.
    ``metrics``: those of the table, then the costs that rows have.
    """

    number: int
    title: str
    citation: str
    dataset: str
    scope: str
    is_comparable: bool
    metrics: tuple[str, ...]
    lines: tuple[ComparisonLine, ...]
    notes: tuple[str, ...]


def compare_with_published(number: int, rows: Sequence[Row], scope: str = "all", dataset: str = "") -> Comparison:
    """Compare result rows with the published table of that number; without rows, nothing is measured.

    ``scope`` applies to detectors; probes always have the scope "backbone". If ``dataset`` is empty it is the published
    one, as it always is for a table that no command can reproduce.
    """
    table, table_source = load_published_table(number), get_source(number)
    known_datasets = {*DETECTOR_CONFIGS, *list_datasets(), *(row.dataset for row in rows)}
    hint = did_you_mean(dataset, known_datasets)
    if dataset and dataset not in known_datasets and (rows or hint):  # without rows any dataset is allowed
        raise UserError(f"--dataset: no row has the dataset {dataset!r}{hint}")
    scope = table_source.resolve_scope(scope)
    dataset = (dataset or table_source.dataset) if table_source.dataset else ""
    selected = [row for row in rows if table_source.dataset and (row.dataset, row.scope) == (dataset, scope)]
    selected = [row for row in selected if _may_belong_to(row, table)]
    newest = keep_newest(selected)
    published_rows = {table_source.get_published_group(row, dataset): row for row in table.rows}
    groups = group_rows(newest, list(published_rows), lambda row: table_source.get_group(row, table))
    is_comparable = dataset == table_source.dataset
    metrics = (*table.metrics, *(name for name in COSTS if any(name in row.metrics for row in newest)))
    lines = (
        line
        for group, measured_rows in groups
        for line in _make_lines(
            group, measured_rows, published_rows.get(group.published_group), metrics, table, table_source, scope
        )
    )
    return Comparison(
        number=number,
        title=table.title,
        citation=table.citation,
        dataset=dataset or ", ".join(dict.fromkeys(row.dataset for row in table.rows)),
        scope=scope,
        is_comparable=is_comparable,
        metrics=metrics,
        lines=tuple(lines),
        notes=tuple(_make_notes(table, rows, selected, groups, dataset, is_comparable)),
    )


def _may_belong_to(row: Row, table: PublishedTable) -> bool:
    """Whether the row has a metric of the table, or no task's metric at all (they have a slash: ``bbox/AP``)."""
    task_metrics = {metric for metric in row.metrics if "/" in metric}
    return not task_metrics or not task_metrics.isdisjoint(table.metrics)


def _make_lines(
    group: RowGroup,
    measured_rows: Sequence[Row],
    published_row: PublishedRow | None,
    metrics: Sequence[str],
    table: PublishedTable,
    table_source: TableSource,
    scope: str,
) -> Iterator[ComparisonLine]:
    published = published_row.values if published_row else {}
    average_rows = [
        row
        for name in table.average_names
        for row in average_over_bits(measured_rows, name, table.bit_widths, table.metrics)
    ]
    cells = {
        bits: {
            metric: _make_cell(
                published.get(Column(bits, metric)), bits_rows, metric, group.dataset == table_source.dataset
            )
            for metric in metrics
        }
        for bits, bits_rows in group_by_bits([*measured_rows, *average_rows], table.column_bits).items()
    }
    incomplete = [bits for bits in cells if any(cells[bits][metric].measured is None for metric in table.metrics)]
    if group.method in TRAINED_AT_EACH_WIDTH:
        incomplete = [bits for bits in incomplete if bits != "FP"]
    to_measure = [bits for bits in incomplete if bits not in table.average_names]
    command = table_source.get_measure_command(table, group, to_measure, scope) if to_measure else ""
    for bits, bits_cells in cells.items():
        yield ComparisonLine(
            **vars(group),
            bits=bits,
            cells=bits_cells,
            measure_command=command if bits in incomplete else "",
            is_published_only=not measured_rows and not command,
            settings=published_row.settings_text if published_row else "",
        )


def _make_cell(published: float | None, rows: Sequence[Row], metric: str, is_comparable: bool) -> Cell:
    measured = measure(row.metrics[metric] for row in rows if metric in row.metrics)
    mean = measured.mean if measured else None
    difference = mean - published if is_comparable and published is not None and mean is not None else None
    return Cell(published, measured, difference)


def _make_notes(
    table: PublishedTable,
    rows: Sequence[Row],
    selected: Sequence[Row],
    groups: Sequence[tuple[RowGroup, list[Row]]],
    dataset: str,
    is_comparable: bool,
) -> Iterator[str]:
    """Notes on the numbers: the settings of the measured rows, the excluded rows, doubtful means, the settings of an
    ablation's rows, possible misprints.

    ``selected``: the part of ``rows`` that belongs to the table; ``groups``: the newest of the selected rows, grouped.
    """
    newest = [row for _, measured_rows in groups for row in measured_rows]
    if not is_comparable:
        reason = "toy data" if dataset.startswith("toy_") else "not the published table's dataset"
        yield f"{dataset} is {reason}: not comparable with the published values, so no difference is given."
    if newest:
        yield f"Measured with {_describe_settings(newest)}."
        yield from _note_epochs(table)
    excluded = Counter(map(_format_dataset_and_scope, rows)) - Counter(map(_format_dataset_and_scope, selected))
    if excluded:
        counts = (f"{_format_row_count(excluded[each])} of {each}" for each in sorted(excluded))
        yield f"Left out, since dataset, scope or metrics are not those of this table: {'; '.join(counts)}."
    if len(selected) > len(newest):
        yield f"Replaced by a newer row of the same measurement: {_format_row_count(len(selected) - len(newest))}."
    for group, measured_rows in groups:
        name = " · ".join(part for part in (group.backbone, group.method) if part)
        for bits, averaged_rows in group_by_bits(measured_rows).items():
            yield from _warn_of_averaged_rows(f"{name} at {bits}", averaged_rows)
    for method in dict.fromkeys(group.method for group, measured_rows in groups if measured_rows):
        if note := get_source(table.number).get_note(method):
            yield f"{method}: {note}."
    for row in table.rows:
        if row.settings:
            yield f"{row.method}: {row.settings_text}."
    for misprint in table.possible_misprints:
        yield f"Possible misprint in the published table: {misprint}."


def _note_epochs(table: PublishedTable) -> Iterator[str]:
    """A note if all published backbones were pretrained for the same number of epochs."""
    epochs = {row.epochs for row in table.rows}
    if len(epochs) == 1 and None not in epochs:
        yield f"The published backbones were pretrained for {epochs.pop()} epochs; measured rows do not record epochs."


def _describe_settings(rows: Sequence[Row]) -> str:
    """Config, scheme, calibration and engine (Detectron2 or its stand-in) of the rows; probes have no engine."""
    values = {
        "config": sorted({row.config or format_protocol(row.protocol) for row in rows}),
        "scheme": sorted({format_scheme(row) for row in rows}),
        "calibration": sorted({str(row.calibration) for row in rows}),
        "engine": sorted({row.engine for row in rows}),
    }
    if values["engine"] == [""]:
        del values["engine"]
    return "; ".join(f"{name} {' or '.join(each or '(not stated)' for each in values[name])}" for name in values)


def _format_dataset_and_scope(row: Row) -> str:
    return f"{row.dataset}, scope {row.scope}"


def _warn_of_averaged_rows(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """Warn if the rows behind a mean may not be repetitions of one experiment, or have values that are not finite."""
    row_counts = Counter(row.seed for row in rows if row.seed >= 0)  # -1 in Detectron2: no seed was fixed
    for seed, count in sorted(row_counts.items()):
        if count > 1:
            yield f"{name} averages {count} rows with the same seed {seed}."
    num_not_finite = sum(None in map(finite_or_none, row.metrics.values()) for row in rows)
    if num_not_finite:
        yield f"{name}: {_format_row_count(num_not_finite)} with a metric that has no value, which the mean excludes."
    if len({row.metrics.get("MB") for row in rows}) > 1:
        yield f"{name} averages detectors of different size; check for per-module bit-widths."


def _format_row_count(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
