"""The report on a folder: both tables, curves, cost, detections, what was loaded, where the minutes went, commands.

Everything is read from what the steps left: rows, coverage, pictures. What is not there is told, not left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from ssql_det.core.rows import finite_or_none
from ssql_det.report.comparison import blocks_of, curves, overview, tenths
from ssql_det.report.document import Block, Document, Folded, Heading, Items, Picture, Table, Text
from ssql_det.report.names import plain_name
from ssql_det.report.texts import unmarked
from ssql_det.reproduce.evidence import evidence
from ssql_det.reproduce.features import features
from ssql_det.reproduce.presets import Transfer
from ssql_det.reproduce.reproduction import Reproduction
from ssql_det.reproduce.runner import DONE, log_of

_TASKS = {"bbox/AP": "boxes", "segm/AP": "masks"}
_FEW = ("8w8a", "4w4a", "2w4a")
_COSTS = {"MB": "MB", "Gbit-ops": "GBOPs"}
_MOST_PIXELS = 1800  # across a picture


def report(reproduction: Reproduction) -> Document:
    """
    >>> page = report(Reproduction(plan, outcomes, "ssql-det reproduce --preset mini", minutes=8.9))
    >>> as_html(page), as_markdown(page)
    """
    return Document(
        f"What bits cost a detector: preset {reproduction.plan.preset.name}",
        (
            *_beginning(reproduction),
            *_answer(reproduction),
            *_missing(reproduction),
            *(block for transfer in reproduction.transfers for block in _table(reproduction, transfer)),
            *_cost(reproduction),
            *_pictures(reproduction),
            *features(reproduction),
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
    if of.plan.choices.budget != 1:
        yield Text(
            f"This is a trial with {of.plan.choices.budget:g} of the data and the training: its figures mean nothing."
        )
    if seeds == 1:
        yield Text(
            "With one seed, differences of a few AP between methods mean nothing: seeds alone differ by as much. "
            "`--seeds 3` gives deviations."
        )


def _answer(of: Reproduction) -> Iterator[Block]:
    """What a reader came for: box AP at full precision, and what each seed loses of it at few bits."""
    yield Heading("What does it cost at few bits?")
    rows = []
    for transfer in of.transfers:
        found = {(row.method, row.seed, row.bits): row for row in of.rows if row.dataset == transfer.dataset}
        aps = {key: finite_or_none(row.metrics.get("bbox/AP")) for key, row in found.items()}
        methods = sorted({row.method for row in of.rows}, key=lambda method: (_place(transfer, method), method))
        for method in methods:
            whole = {
                seed: ap for seed in range(of.plan.preset.seeds) if (ap := aps.get((method, seed, "FP"))) is not None
            }
            losses = [
                [ap - left for seed, ap in whole.items() if (left := aps.get((method, seed, bits))) is not None]
                for bits in _FEW
            ]
            if whole:
                rows.append((transfer.title, unmarked(method), *map(_spread, ([*whole.values()], *losses))))
    if rows:
        header = ("detector", "method", "box AP at FP", *(f"lost at {bits}" for bits in _FEW))
        yield Table(header, tuple(rows), names=2)
    else:
        yield Text("Nothing was measured at FP, so what is lost cannot be told.")


def _place(transfer: Transfer, method: str) -> int:
    """The same in both tables, which print different methods: so a method has one colour."""
    known, plain = [plain_name(name) for name in transfer.methods], plain_name(method)
    return known.index(plain) if plain in known else len(known)


def _spread(values: Sequence[float]) -> str:
    """The mean, and the deviation of several."""
    if not values:
        return "-"
    mean = f"{tenths(statistics.fmean(values)):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


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


def _table(of: Reproduction, transfer: Transfer) -> Iterator[Block]:
    table = of.tables[transfer.name]
    on_toys = f"{transfer.title}, on toy data, beside Table {table.number}"
    yield Heading(on_toys if of.plan.preset.data else f"Table {table.number}: {unmarked(table.title)}")
    metrics = [metric for metric in _TASKS if metric in table.metrics]
    for metric in metrics:
        chart = curves(table, metric, f"{transfer.name}-{_TASKS[metric]}", f"AP of {_TASKS[metric]} over bit-widths")
        yield replace(chart, curves=tuple(sorted(chart.curves, key=lambda curve: _place(transfer, curve.name))))
    for metric in metrics:
        yield Heading(f"AP of {_TASKS[metric]}, {transfer.title}", level=3)
        yield overview(table, metric)
    whole = blocks_of(table, with_commands=False)
    yield Folded("All metrics", tuple(each for each in whole if not (isinstance(each, Heading) and each.level == 2)))


def _cost(of: Reproduction) -> Iterator[Block]:
    yield Heading("Size and cost")
    yield Text(
        "MB of parameters; Gbit-ops: billions of multiply-adds times the bits of both factors, of one test image. "
        "Where a mask is made of each box that is found, detectors differ: least to most."
    )
    for transfer in of.transfers:
        rows = [row for row in of.rows if row.dataset == transfer.dataset]
        widths = tuple(dict.fromkeys(row.bits for row in rows))
        figures = [
            (name, *(_range([row.metrics.get(key) for row in rows if row.bits == bits]) for bits in widths))
            for name, key in _COSTS.items()
        ]
        if widths:
            yield Table((transfer.title, *widths), tuple(figures))


def _range(values: Sequence[float | None]) -> str:
    figures = [_figure(value) for value in sorted(value for value in values if value is not None)]
    return "-" if not figures else figures[0] if figures[0] == figures[-1] else f"{figures[0]} to {figures[-1]}"


def _figure(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _pictures(of: Reproduction) -> Iterator[Block]:
    yield Heading("Detections")
    drawn = list(of.done("predict"))
    if not drawn:
        yield Text("No step has drawn any.")
    for step in drawn:
        detector = step.name.removeprefix("predict-")
        least = f", from a score of {of.plan.preset.score}" if of.plan.preset.score else ""
        for path in step.makes:
            words = (
                f"{detector}, image {path.stem}: one copy of weights at {of.plan.preset.bits.replace(',', ', ')}{least}"
            )
            yield Picture(f"{detector}-{path.stem}.jpg", _smaller(path), words)


def _smaller(path: Path) -> bytes:
    """Pictures side by side are wide; a page has room for less."""
    image: Any = cv2.imread(str(path))
    scale = min(1.0, _MOST_PIXELS / image.shape[1])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1])
