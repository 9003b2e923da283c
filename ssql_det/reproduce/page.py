"""The report on a folder: both tables, curves, cost, detections, what was loaded, where the minutes went, commands.

Everything is read from what the steps left: rows, coverage, pictures. What is not there is told, not left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from ssql_det.report.comparison import blocks_of, curves, overview
from ssql_det.report.document import Block, Document, Folded, Heading, Items, Picture, Table, Text
from ssql_det.report.tables import Comparison
from ssql_det.report.texts import unmarked
from ssql_det.reproduce.evidence import evidence
from ssql_det.reproduce.presets import Transfer
from ssql_det.reproduce.reproduction import Reproduction
from ssql_det.reproduce.runner import DONE, log_of

_TASKS = {"bbox/AP": "boxes", "segm/AP": "masks"}
_FEW = ("8w8a", "4w4a", "2w4a")
_MOST_PIXELS = 1800  # across a picture


def report(reproduction: Reproduction) -> Document:
    """
    >>> page = report(Reproduction(plan, outcomes, "ssql-det reproduce --preset mini", minutes=8.9))
    >>> as_html(page), as_markdown(page)
    """
    tables = reproduction.tables
    return Document(
        f"What bits cost a detector: preset {reproduction.plan.preset.name}",
        (
            *_beginning(reproduction),
            *_answer(reproduction),
            *_missing(reproduction),
            *(block for transfer in reproduction.transfers for block in _table(transfer, tables[transfer.name])),
            *_cost(reproduction),
            *_pictures(reproduction),
            *evidence(reproduction),
        ),
    )


def _beginning(of: Reproduction) -> Iterator[Block]:
    seeds, preset = of.plan.preset.seeds, of.plan.preset
    yield Text(
        "Backbones pretrained with and without SSQL (Cao et al., ECCV 2022), each moved to a detector, and that "
        "evaluated at full precision and at few bits, from one copy of its weights. "
        f"Every number is the mean of {seeds} seed{'s' if seeds > 1 else ''}; all of it was made by `{of.command}`."
    )
    if preset.data is not None:
        yield Text(
            "These are toy data and small networks. The published figures stand beside ours to show what the tables "
            "are, and cannot be compared with them: ours say what bits cost, not how good a detector is."
        )
    if seeds == 1:
        yield Text(
            "With one seed, differences of a few AP between methods mean nothing: seeds alone differ by as much. "
            "`--seeds 3` gives deviations."
        )


def _answer(of: Reproduction) -> Iterator[Block]:
    """What a reader came for: box AP at full precision, and what is left of it at the fewest equal bits and below."""
    rows, widths = [], [bits for bits in _FEW if any(_means(table, bits) for table in of.tables.values())]
    for transfer in of.transfers:
        table = of.tables[transfer.name]
        whole = _means(table, "FP")
        for method in sorted(whole, key=lambda method: _place(transfer, method)):
            left = (_lost(whole[method], _means(table, bits).get(method)) for bits in widths)
            rows.append((transfer.title, unmarked(method), f"{whole[method]:.1f}", *left))
    if rows and widths:
        yield Heading("What does it cost at few bits?")
        yield Table(
            ("detector", "method", "box AP at FP", *(f"lost at {bits}" for bits in widths)), tuple(rows), names=2
        )


def _place(transfer: Transfer, method: str) -> int:
    """The same in both tables, which print different methods: so a method has one colour."""
    known = list(transfer.methods)
    return known.index(method) if method in known else len(known)


def _means(table: Comparison, bits: str) -> dict[str, float]:
    """Box AP by method, of those that were measured."""
    cells = {line.method: line.cells["bbox/AP"].measured for line in table.lines if line.bits == bits}
    return {method: cell.mean for method, cell in cells.items() if cell is not None and cell.mean is not None}


def _lost(full: float, left: float | None) -> str:
    return "-" if left is None else f"{round(full - left, 1) + 0.0:.1f}"  # no -0.0


def _missing(of: Reproduction) -> Iterator[Block]:
    lost = [(step, of.outcomes[step.name]) for step in of.plan.steps if of.outcomes[step.name].state != DONE]
    if lost:
        yield Heading("What is missing")
        yield Text("These steps are not done; the same command tries them again.")
        rows = [
            (step.name, outcome.state, unmarked(outcome.reason), str(log_of(of.plan.out, step)))
            for step, outcome in lost
        ]
        yield Table(("step", "state", "why", "log"), tuple(rows), names=4)
    if of.plan.left_out:
        yield Folded("Published rows that were not made", (Items(of.plan.left_out),))


def _table(transfer: Transfer, table: Comparison) -> Iterator[Block]:
    yield Heading(f"Table {table.number}: {unmarked(table.title)}")
    metrics = [metric for metric in _TASKS if metric in table.metrics]
    for metric in metrics:
        chart = curves(table, metric, f"{transfer.name}-{_TASKS[metric]}", f"AP of {_TASKS[metric]} over bit-widths")
        yield replace(chart, curves=tuple(sorted(chart.curves, key=lambda curve: _place(transfer, curve.name))))
    for metric in metrics:
        yield Heading(f"AP of {_TASKS[metric]}, {transfer.title}", level=3)
        yield overview(table, metric)
    whole = [block for block in blocks_of(table) if not (isinstance(block, Heading) and block.level == 2)]
    yield Folded("All metrics, with differences and the commands that fill what is empty", tuple(whole))


def _cost(of: Reproduction) -> Iterator[Block]:
    """Bytes and operations do not depend on the method: those of the first row at each width."""
    yield Heading("Size and cost")
    yield Text("MB of parameters; Gbit-ops: billions of multiply-adds times the bits of both factors, of one image.")
    for transfer in of.transfers:
        first = {row.bits: row.metrics for row in reversed(of.rows) if row.dataset == transfer.dataset}
        widths = [bits for bits in dict.fromkeys(row.bits for row in of.rows) if bits in first]
        figures = [(name, *(_figure(first[bits].get(key)) for bits in widths)) for name, key in _COSTS.items()]
        if widths:
            yield Table((transfer.config.rpartition("/")[2], *widths), tuple(figures))


_COSTS = {"MB": "MB", "Gbit-ops": "GBOPs"}


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _pictures(of: Reproduction) -> Iterator[Block]:
    yield Heading("Detections")
    drawn = list(of.done("predict"))
    if not drawn:
        yield Text("No step has drawn any.")
    for step in drawn:
        detector = step.name.removeprefix("predict-")
        for path in step.makes:
            words = f"{detector}, {path.stem}: one copy of weights at {of.plan.preset.bits.replace(',', ', ')}"
            yield Picture(f"{detector}-{path.stem}.jpg", _smaller(path), words)


def _smaller(path: Path) -> bytes:
    """Pictures side by side are wide; a page has room for less."""
    image: Any = cv2.imread(str(path))
    scale = min(1.0, _MOST_PIXELS / image.shape[1])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1])
