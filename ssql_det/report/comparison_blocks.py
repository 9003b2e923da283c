"""A comparison with a published table as blocks of a page: full tables, an overview of one metric, a chart.

>>> from ssql_det.report.comparison import compare_with_published
>>> comparison = compare_with_published(6, [])
>>> build_overview_table(comparison, "bbox/AP").header
('method', 'values', 'FP', '8w8a', '6w6a', '5w5a', '4w4a')
>>> build_comparison_blocks(comparison)[0].text
'Table 6. Faster R-CNN R18-C4, VOC2007 test: published and measured'
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ssql_det.core.rows import format_metric
from ssql_det.report.blocks import Block, Chart, Curve, Heading, ItemList, Paragraph, Table
from ssql_det.report.comparison import Cell, Comparison, ComparisonLine
from ssql_det.report.markup import escape_markup
from ssql_det.report.row_groups import Measurement, list_separate, sort_bits

_TASK_TITLES = {"bbox": "Boxes", "segm": "Masks", "linear": "Linear probe", "finetune": "Fine-tuning", "": "Cost"}
_GROUP_FIELDS = ("config", "scheme", "calibration")  # in which lines of one method may differ
_EMPTY = "-"
_PUBLISHED_ONLY = "published only"


def build_comparison_blocks(comparison: Comparison, with_commands: bool = True) -> tuple[Block, ...]:
    """A section of a page: notes, a table per task and, if ``with_commands``, what measures the empty cells."""
    commands = list(dict.fromkeys(line.measure_command for line in comparison.lines if line.measure_command))
    commands = commands if with_commands else []
    blocks: list[Block] = [
        Heading(f"Table {comparison.number}. {escape_markup(comparison.title)}: published and measured"),
        Paragraph(_describe(comparison)),
    ]
    if comparison.notes:
        blocks.append(ItemList(tuple(map(escape_markup, comparison.notes))))
    for task in dict.fromkeys(map(_get_task, comparison.metrics)):
        blocks += [Heading(_TASK_TITLES.get(task, task), level=3), _build_task_table(comparison, task, commands)]
    if any(line.is_published_only for line in comparison.lines):
        blocks.append(Paragraph(f"No command of this package can measure the cells marked {_PUBLISHED_ONLY} yet."))
    if commands:
        blocks.append(Paragraph("A cell with a number such as `[1]` is not measured yet; this command measures it:"))
        blocks.append(ItemList(tuple(f"`{escape_markup(command)}`" for command in commands), is_numbered=True))
    return tuple(blocks)


def build_overview_table(comparison: Comparison, metric: str) -> Table:
    """One metric: for each method the published values and, below them, the measured ones, by bit-width."""
    bit_widths = sort_bits(line.bits for line in comparison.lines)
    rows = []
    methods_done: set[str] = set()
    for label, lines in _group_by_label(comparison).items():
        cells = {line.bits: line.cells[metric] for line in lines}
        published = [_format_published(cells[bits].published) if bits in cells else _EMPTY for bits in bit_widths]
        method = _get_method_label(comparison, lines[0])
        if method not in methods_done and set(published) != {_EMPTY}:
            rows.append((method, "published", *published))
            methods_done.add(method)
        means = {bits: _format_measured(cell.measured, 1) for bits, cell in cells.items() if cell.measured}
        if means:
            rows.append((label, "measured", *(means.get(bits, _EMPTY) for bits in bit_widths)))
    return Table(("method", "values", *bit_widths), tuple(rows), text_columns=2)


def build_chart(comparison: Comparison, metric: str, name: str, title: str) -> Chart:
    """The measured values of one metric by bit-width. ``name`` is the chart's file name without the suffix."""
    measured = {
        label: {line.bits: value for line in lines if (value := line.cells[metric].measured) and value.n}
        for label, lines in _group_by_label(comparison).items()
    }
    bit_widths = sort_bits(bits for by_bits in measured.values() for bits in by_bits)
    curves = tuple(
        Curve(
            label,
            tuple(by_bits[bits].mean if bits in by_bits else None for bits in bit_widths),
            tuple(by_bits[bits].std if bits in by_bits else None for bits in bit_widths),
        )
        for label, by_bits in measured.items()
        if by_bits
    )
    return Chart(name, title, bit_widths, curves, metric.rpartition("/")[2], list_separate(bit_widths))


def round_to_tenth(value: float) -> float:
    """Round to one decimal; never to minus zero."""
    return round(value, 1) + 0.0


def _describe(comparison: Comparison) -> str:
    dataset = f"Dataset: {escape_markup(comparison.dataset)}."
    measured = "Measured: the mean over seeds ± standard deviation (number of seeds)."
    scope = f" Scope: {comparison.scope}. {measured}" if comparison.scope else ""
    return f'Published: {comparison.citation}. {dataset}{scope} "(ours)" in a name means the paper\'s authors.'


def _get_task(metric: str) -> str:
    """The part before the slash, such as ``bbox``; empty for a cost."""
    task, slash, _ = metric.partition("/")
    return task if slash else ""


def _build_task_table(comparison: Comparison, task: str, commands: Sequence[str]) -> Table:
    metrics = [metric for metric in comparison.metrics if _get_task(metric) == task]
    has_published = bool(task)  # costs, which have no task, are not published
    header = ["method", "bits"]
    for metric in metrics:
        name = metric.rpartition("/")[2]
        header += [f"{name} published", "measured", "difference"] if has_published else [name]
    rows = tuple(
        (label, escape_markup(line.bits), *_format_cells(line, metrics, has_published, commands))
        for label, lines in _group_by_label(comparison).items()
        for line in lines
        if has_published or any(line.cells[metric].measured for metric in metrics)
    )
    return Table(tuple(header), rows, text_columns=2)


def _group_by_label(comparison: Comparison) -> dict[str, list[ComparisonLine]]:
    """Lines by label: the method, with its config, scheme or calibration if lines of the method differ in it."""
    methods = [_get_method_label(comparison, line) for line in comparison.lines]
    by_method: dict[str, list[ComparisonLine]] = {}
    for method, line in zip(methods, comparison.lines, strict=True):
        by_method.setdefault(method, []).append(line)
    differing = {method: _find_differing(_GROUP_FIELDS, lines) for method, lines in by_method.items()}
    labels: dict[str, list[ComparisonLine]] = {}
    for method, line in zip(methods, comparison.lines, strict=True):
        values = [value for name in differing[method] if (value := getattr(line, name))]
        labels.setdefault(escape_markup(" · ".join([method, *values])), []).append(line)
    return labels


def _get_method_label(comparison: Comparison, line: ComparisonLine) -> str:
    """The method, preceded by dataset and backbone if the table has several."""
    differing = _find_differing(("dataset", "backbone"), comparison.lines)
    return escape_markup(" · ".join([*(getattr(line, name) for name in differing), line.method]))


def _find_differing(names: Iterable[str], lines: Sequence[ComparisonLine]) -> list[str]:
    """The fields in which not all lines are the same."""
    return [name for name in names if len({getattr(line, name) for line in lines}) > 1]


def _format_cells(
    line: ComparisonLine, metrics: Sequence[str], has_published: bool, commands: Sequence[str]
) -> Iterator[str]:
    for metric in metrics:
        cell = line.cells[metric]
        if not has_published:
            yield _format_measured(cell.measured, 2) if cell.measured else _EMPTY
            continue
        yield _format_published(cell.published)
        yield _format_measured(cell.measured, 1) if cell.measured else _format_empty(line, cell, commands)
        yield _EMPTY if cell.difference is None else f"{round_to_tenth(cell.difference):+.1f}"


def _format_empty(line: ComparisonLine, cell: Cell, commands: Sequence[str]) -> str:
    if line.measure_command in commands:
        return f"[{commands.index(line.measure_command) + 1}]"
    return _PUBLISHED_ONLY if line.is_published_only and cell.published is not None else _EMPTY


def _format_published(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.1f}"


def _format_measured(measured: Measurement, decimals: int) -> str:
    std = f" ± {measured.std:.{decimals}f}" if measured.std else ""
    num_values = f" ({measured.n})" if measured.n > 1 else ""
    return f"{format_metric(measured.mean, decimals)}{std}{num_values}"
