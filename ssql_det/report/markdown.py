"""A comparison as Markdown: a table for boxes, one for masks, one for cost; then notes, and what fills empty cells.

>>> print(as_markdown(compare(6, rows)))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssql_det.report.tables import Cell, Comparison, Line, Measured

_TASKS = {"bbox": "Boxes", "segm": "Masks", "": "Cost"}
_NOTHING = "-"


def as_markdown(table: Comparison) -> str:
    """The whole text, with a newline at its end."""
    commands = list(dict.fromkeys(line.filled_by for line in table.lines if line.filled_by))
    blocks = [
        f"## {_text(table.title)}: published and measured",
        f"Published: {table.source}. Data set: {_text(table.dataset)}. Scope: {_text(table.scope)}. "
        "Measured: the mean of the seeds, ± standard deviation (number of seeds). "
        "A name's (ours) is the paper's.",
        *(["\n".join(f"- {note}" for note in table.notes)] if table.notes else []),
        *(_section(table, task, commands) for task in _tasks(table)),
    ]
    if commands:
        listed = "\n".join(f"{number}. `{command}`" for number, command in enumerate(commands, start=1))
        blocks.append(f"Cells marked `[1]` ... are empty; these commands fill them:\n\n{listed}")
    return "\n\n".join(blocks) + "\n"


def _tasks(table: Comparison) -> list[str]:
    return list(dict.fromkeys(_task(metric) for metric in table.metrics))


def _task(metric: str) -> str:
    task, slash, _ = metric.partition("/")
    return task if slash else ""


def _section(table: Comparison, task: str, commands: Sequence[str]) -> str:
    metrics = [metric for metric in table.metrics if _task(metric) == task]
    is_published = bool(task)
    header = ["method", "bits"]
    for metric in metrics:
        name = metric.rpartition("/")[2]
        header += [f"{name} published", "measured", "difference"] if is_published else [name]
    lines = [line for line in table.lines if is_published or any(line.cells[metric].measured for metric in metrics)]
    body = [[_name(table, line), _text(line.bits), *_cells(line, metrics, is_published, commands)] for line in lines]
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *body))
    return f"### {_TASKS.get(task, _text(task))}\n\n{rows}"


def _name(table: Comparison, line: Line) -> str:
    """A method, and where measured lines differ in it, its config and calibration."""
    differs = [
        getattr(line, name)
        for name in ("config", "calibration")
        if len({getattr(other, name) for other in table.lines if other.config}) > 1 and getattr(line, name)
    ]
    return _text(" · ".join([line.method, *differs]))


def _cells(line: Line, metrics: Sequence[str], is_published: bool, commands: Sequence[str]) -> Iterator[str]:
    for metric in metrics:
        cell = line.cells[metric]
        if not is_published:
            yield _mean(cell.measured, 2) if cell.measured else _NOTHING
            continue
        yield _figure(cell.published)
        yield _mean(cell.measured, 1) if cell.measured else f"[{commands.index(line.filled_by) + 1}]"
        yield _difference(cell)


def _figure(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f}"


def _mean(measured: Measured, digits: int) -> str:
    if measured.mean is None:
        return "not a number"
    spread = f" ± {measured.std:.{digits}f}" if measured.std else ""
    count = f" ({measured.n})" if measured.n > 1 else ""
    return f"{measured.mean:.{digits}f}{spread}{count}"


def _difference(cell: Cell) -> str:
    return _NOTHING if cell.difference is None else f"{round(cell.difference, 1) + 0.0:+.1f}"  # no -0.0


def _text(text: str) -> str:
    """Text of a row in a table: a bar would end the cell."""
    return text.replace("|", "\\|")
