"""A comparison as parts of a page: whole, with a table for boxes, masks and cost; short, for one metric; and drawn.

>>> table = compare(6, rows)
>>> print(as_markdown(Document("", build_comparison_blocks(table))))
>>> build_overview_table(table, "bbox/AP").header
('method', 'figures', 'FP', '8w8a', '6w6a', '5w5a', '4w4a')
>>> as_svg(build_chart(table, "bbox/AP", "boxes", "Boxes over bit-widths"))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssql_det.report.blocks import Block, Chart, Curve, Heading, ItemList, Paragraph, Table
from ssql_det.report.comparison import Cell, Comparison, ComparisonLine, Measurement
from ssql_det.report.markup import escape_markup
from ssql_det.report.row_groups import sort_bits

_TASKS = {"bbox": "Boxes", "segm": "Masks", "linear": "Linear probe", "finetune": "Fine-tuning", "": "Cost"}
_HOW = ("config", "scheme", "calibration")  # in which lines of one method may differ
_NOTHING = "-"
_PUBLISHED_ONLY = "published only"
_GAPS = f"Cells that say {_PUBLISHED_ONLY} are of lines that this project cannot produce yet."


def build_comparison_blocks(table: Comparison, with_commands: bool = True) -> tuple[Block, ...]:
    """A section: the tables, what a reader must know beside them, and the commands that fill what is empty."""
    commands = list(dict.fromkeys(line.filled_by for line in table.lines if line.filled_by and with_commands))
    filling: list[Block] = [
        Paragraph("Cells marked `[1]` ... are empty; these commands fill them:"),
        ItemList(tuple(f"`{escape_markup(command)}`" for command in commands), is_numbered=True),
    ]
    measured = (
        f" Scope: {table.scope}. Measured: the mean of the seeds, ± standard deviation (number of seeds)."
        if table.scope
        else ""
    )
    return (
        Heading(f"Table {table.number}. {escape_markup(table.title)}: published and measured"),
        Paragraph(
            f"Published: {table.source}. Data set: {escape_markup(table.dataset)}.{measured} A name's (ours) is the paper's."
        ),
        *([ItemList(tuple(map(escape_markup, table.notes)))] if table.notes else []),
        *(block for task in dict.fromkeys(map(_task, table.metrics)) for block in _section(table, task, commands)),
        *([Paragraph(_GAPS)] if any(line.is_published_only for line in table.lines) else []),
        *(filling if commands else []),
    )


def build_overview_table(table: Comparison, metric: str) -> Table:
    """One metric: the methods' published figures, and below them those measured; bit-widths are the columns."""
    widths = sort_bits(line.bits for line in table.lines)
    rows = []
    published: set[str] = set()
    for name, lines in _by_name(table).items():
        cells = {line.bits: line.cells[metric] for line in lines}
        figures = [_figure(cells[bits].published) if bits in cells else _NOTHING for bits in widths]
        printed = _title(table, lines[0])
        if printed not in published and set(figures) != {_NOTHING}:
            rows.append((printed, "published", *figures))
            published.add(printed)
        means = {bits: _mean(cell.measured, 1) for bits, cell in cells.items() if cell.measured}
        if means:
            rows.append((name, "measured", *(means.get(bits, _NOTHING) for bits in widths)))
    return Table(("method", "figures", *widths), tuple(rows), text_columns=2)


def build_chart(table: Comparison, metric: str, name: str, title: str) -> Chart:
    """What was measured of one metric, over the bit-widths where anything was. ``name`` is the file's."""
    measured = {
        method: {line.bits: found for line in lines if (found := line.cells[metric].measured) and found.n}
        for method, lines in _by_name(table).items()
    }
    widths = sort_bits(bits for means in measured.values() for bits in means)
    return Chart(
        name,
        title,
        widths,
        tuple(
            Curve(
                method,
                tuple(means[bits].mean if bits in means else None for bits in widths),
                tuple(means[bits].std if bits in means else None for bits in widths),
            )
            for method, means in measured.items()
            if means
        ),
        y_label=metric.rpartition("/")[2],
    )


def _task(metric: str) -> str:
    task, slash, _ = metric.partition("/")
    return task if slash else ""


def _section(table: Comparison, task: str, commands: Sequence[str]) -> tuple[Heading, Table]:
    metrics = [metric for metric in table.metrics if _task(metric) == task]
    is_published = bool(task)
    header = ["method", "bits"]
    for metric in metrics:
        name = metric.rpartition("/")[2]
        header += [f"{name} published", "measured", "difference"] if is_published else [name]
    rows = tuple(
        (name, escape_markup(line.bits), *_cells(line, metrics, is_published, commands))
        for name, lines in _by_name(table).items()
        for line in lines
        if is_published or any(line.cells[metric].measured for metric in metrics)
    )
    return Heading(_TASKS.get(task, task), level=3), Table(tuple(header), rows, text_columns=2)


def _by_name(table: Comparison) -> dict[str, list[ComparisonLine]]:
    """Lines by their method and, where those of one method differ in it, their config, scheme and calibration."""
    named: dict[str, list[ComparisonLine]] = {}
    for line in table.lines:
        title = _title(table, line)
        of_method = [each for each in table.lines if _title(table, each) == title]
        several = [name for name in _HOW if len({getattr(each, name) for each in of_method}) > 1]
        differs = [value for name in several if (value := getattr(line, name))]
        named.setdefault(escape_markup(" · ".join([title, *differs])), []).append(line)
    return named


def _title(table: Comparison, line: ComparisonLine) -> str:
    """Its method, and before that its data set and backbone where the table has several."""
    several = [field for field in ("dataset", "backbone") if len({getattr(each, field) for each in table.lines}) > 1]
    return escape_markup(" · ".join([*(getattr(line, field) for field in several), line.method]))


def _cells(line: ComparisonLine, metrics: Sequence[str], is_published: bool, commands: Sequence[str]) -> Iterator[str]:
    for metric in metrics:
        cell = line.cells[metric]
        if not is_published:
            yield _mean(cell.measured, 2) if cell.measured else _NOTHING
            continue
        yield _figure(cell.published)
        yield _mean(cell.measured, 1) if cell.measured else _empty(line, cell, commands)
        yield _NOTHING if cell.difference is None else f"{round_to_tenth(cell.difference):+.1f}"


def _empty(line: ComparisonLine, cell: Cell, commands: Sequence[str]) -> str:
    if line.filled_by in commands:
        return f"[{commands.index(line.filled_by) + 1}]"
    return _PUBLISHED_ONLY if line.is_published_only and cell.published is not None else _NOTHING


def _figure(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f}"


def _mean(measured: Measurement, digits: int) -> str:
    if measured.mean is None:
        return "not a number"
    spread = f" ± {measured.std:.{digits}f}" if measured.std else ""
    count = f" ({measured.n})" if measured.n > 1 else ""
    return f"{measured.mean:.{digits}f}{spread}{count}"


def round_to_tenth(value: float) -> float:
    """Rounded; next to nothing has no sign."""
    return round(value, 1) + 0.0
