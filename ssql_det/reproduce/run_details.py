"""What stands behind the numbers of a report: what was loaded, how training ended, minutes, environment, commands."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ssql_det.core.rows import package_versions
from ssql_det.report.blocks import Block, CodeBlock, Collapsible, Heading, Paragraph, Table
from ssql_det.report.markup import escape_markup
from ssql_det.reproduce.plan import RunResults, format_commands, sum_minutes_by_kind

_LOOKS = {"kNN at FP": "knn/FP", "kNN at 2w4a": "knn/2w4a"}


def build_run_details(of: RunResults) -> Iterator[Block]:
    """
    >>> blocks = tuple(build_run_details(RunResults(plan, outcomes, "ssql-det reproduce", minutes=8.9)))
    """
    yield from _coverage(of)
    yield from _pretraining(of)
    yield from _minutes(of)
    yield from _environment(of)
    yield from _commands(of)


def _coverage(of: RunResults) -> Iterator[Block]:
    if not of.plan.has("train"):
        return
    yield Heading("What was loaded")
    yield Paragraph("All of a backbone finds its place in the detector, or the training is refused; heads begin anew.")
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
    return f"{coverage['percent']:.1f} %", str(len(coverage["used"])), escape_markup(left)


def _pretraining(of: RunResults) -> Iterator[Block]:
    runs = []
    for step in of.done("pretrain"):
        path = step.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        last = {key: value for line in lines for key, value in line.items()}
        if "loss" in last:
            knn = [f"{last[key]:.1f}" if key in last else "-" for key in _LOOKS.values()]
            figures = (str(last["step"] + 1), f"{last['loss']:.4f}", f"{last['spread']:.2f}", *knn)
            runs.append((step.folder.name, *figures))
    if runs:
        yield Heading("Pretraining")
        yield Paragraph(
            "A spread near 1: features point everywhere; near 0: they have collapsed. A kNN accuracy far below that of "
            "other runs: collapsed in part, whatever the spread."
        )
        yield Table(("run", "steps", "last loss", "spread", *_LOOKS), tuple(runs))


def _minutes(of: RunResults) -> Iterator[Block]:
    yield Heading("Where the minutes went")
    yield Table(("steps", "count", "minutes of work"), sum_minutes_by_kind(of))
    yield Paragraph(f"This time it took {of.minutes:.1f} minutes; what was there already was not made again.")


def _environment(of: RunResults) -> Iterator[Block]:
    found = [row for rows in of.rows.values() for row in rows]
    engines = sorted({row.engine for row in found if row.engine})
    software = {**package_versions(), **(found[-1].versions if found else {})}
    yield Heading("Environment")
    lines = [
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        *([f"detectors on {' and '.join(engines)}"] if engines else []),
        *(f"{name} {version}" for name, version in software.items()),
    ]
    yield CodeBlock("\n".join(lines))


def _commands(of: RunResults) -> Iterator[Block]:
    yield Heading("Commands")
    yield Paragraph("Each step is one command; run by hand in this order they give the same rows.")
    yield Collapsible(f"All {len(of.plan.steps)} commands", (CodeBlock(format_commands(of.plan)),))
