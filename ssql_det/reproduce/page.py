"""The report on a folder: both tables, curves, cost, detections, what was loaded, where the minutes went, commands.

Everything is read from what the steps left: rows, coverage, pictures. What is not there is told, not left out.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssql_det.core.rows import Row, versions
from ssql_det.report.comparison import blocks_of, curves, overview
from ssql_det.report.document import Block, Document, Folded, Heading, Items, Listing, Picture, Table, Text
from ssql_det.report.reading import read_rows
from ssql_det.report.tables import Comparison, compare
from ssql_det.report.texts import unmarked
from ssql_det.reproduce.plan import Plan
from ssql_det.reproduce.presets import Transfer
from ssql_det.reproduce.runner import DONE, Outcome, log_of
from ssql_det.reproduce.step import Step

_TASKS = {"bbox/AP": "boxes", "segm/AP": "masks"}


@dataclass(frozen=True)
class Reproduction:
    """A plan with what became of it. ``command`` is what was typed, ``minutes`` what it took this time."""

    plan: Plan
    outcomes: Mapping[str, Outcome]
    command: str
    minutes: float

    @property
    def rows(self) -> list[Row]:
        """Of the sweeps that are done."""
        return read_rows(step.makes[0] for step in self.done("sweep"))

    @property
    def transfers(self) -> list[Transfer]:
        return [each for each in self.plan.preset.transfers if each.table in self.plan.tables]

    @property
    def tables(self) -> dict[str, Comparison]:
        """By the name of the detector."""
        rows = self.rows
        return {each.name: compare(each.table, rows, dataset=each.dataset) for each in self.transfers}

    def done(self, kind: str) -> Iterator[Step]:
        for step in self.plan.steps:
            if step.kind == kind and step.name in self.outcomes and self.outcomes[step.name].state == DONE:
                yield step


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
            *_missing(reproduction),
            *(block for name, table in tables.items() for block in _table(name, table)),
            *_cost(reproduction),
            *_pictures(reproduction),
            *_coverage(reproduction),
            *_pretraining(reproduction),
            *_minutes(reproduction),
            *_environment(reproduction),
            *_commands(reproduction),
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


def _table(name: str, table: Comparison) -> Iterator[Block]:
    yield Heading(f"Table {table.number}: {unmarked(table.title)}")
    metrics = [metric for metric in _TASKS if metric in table.metrics]
    for metric in metrics:
        yield curves(table, metric, f"{name}-{_TASKS[metric]}", f"AP of {_TASKS[metric]} over bit-widths")
    for metric in metrics:
        yield Heading(f"AP of {_TASKS[metric]}, {name}", level=3)
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
            words = f"{detector}, {path.stem}: the same weights at {of.plan.preset.bits}"
            yield Picture(f"{detector}-{path.name}", path.read_bytes(), words)


def _coverage(of: Reproduction) -> Iterator[Block]:
    yield Heading("What was loaded")
    yield Text("All of a backbone finds its place in the detector, or the training is refused; heads begin anew.")
    rows = []
    for step in of.done("train"):
        path = step.folder / "coverage.json"
        if not path.exists():
            rows.append((step.name.removeprefix("train-"), "random weights", "-", "-"))
            continue
        coverage = json.loads(path.read_text("utf-8"))
        rows.append((step.name.removeprefix("train-"), *_loaded(coverage)))
    yield Table(("detector", "of the backbone", "tensors", "left out"), tuple(rows))


def _loaded(coverage: Mapping[str, Any]) -> tuple[str, str, str]:
    reasons = Counter(coverage["left_out"].values())
    left = "; ".join(f"{count}: {reason}" for reason, count in reasons.items()) or "none"
    return f"{coverage['percent']:.1f} %", str(len(coverage["used"])), unmarked(left)


def _pretraining(of: Reproduction) -> Iterator[Block]:
    runs = []
    for step in of.done("pretrain"):
        path = step.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        logged = [line for line in lines if "loss" in line]
        if logged:
            last = logged[-1]
            runs.append((step.folder.name, str(last["step"] + 1), f"{last['loss']:.4f}", f"{last['spread']:.2f}"))
    if runs:
        yield Heading("Pretraining")
        yield Text("A spread near 1: features point everywhere; near 0: they have collapsed.")
        yield Table(("run", "steps", "last loss", "spread"), tuple(runs))


def _minutes(of: Reproduction) -> Iterator[Block]:
    yield Heading("Where the minutes went")
    yield Table(("steps", "count", "minutes of work"), minutes_by_kind(of))
    yield Text(f"This time it took {of.minutes:.1f} minutes; what was there already was not made again.")


def minutes_by_kind(of: Reproduction) -> tuple[tuple[str, str, str], ...]:
    kinds = dict.fromkeys(step.kind for step in of.plan.steps)
    rows = []
    for kind in kinds:
        seconds = [of.outcomes[step.name].seconds for step in of.done(kind)]
        rows.append((kind, str(len(seconds)), f"{sum(seconds) / 60:.1f}"))
    total = sum(of.outcomes[step.name].seconds for kind in kinds for step in of.done(kind))
    return (*rows, ("all", str(sum(int(count) for _, count, _ in rows)), f"{total / 60:.1f}"))


def _environment(of: Reproduction) -> Iterator[Block]:
    found = of.rows
    engines = sorted({row.engine for row in found}) or ["none yet"]
    software = {**versions(), **(found[-1].versions if found else {})}
    yield Heading("Environment")
    yield Listing(
        "\n".join(
            [
                f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
                f"detectors on {' and '.join(engines)}",
                *(f"{name} {version}" for name, version in software.items()),
            ]
        )
    )


def _commands(of: Reproduction) -> Iterator[Block]:
    yield Heading("Commands")
    yield Text("Each step is one command; run by hand in this order they give the same rows.")
    yield Folded(f"All {len(of.plan.steps)} commands", (Listing(by_hand(of.plan.data, of.plan.steps)),))


def by_hand(data: Path, steps: Sequence[Step]) -> str:
    """The plan as lines for a shell. One thread, as here: so that sums are rounded alike."""
    head = f"export DETECTRON2_DATASETS={shlex.quote(str(data))} OMP_NUM_THREADS=1"
    return "\n".join([head, *(step.command for step in steps)])
