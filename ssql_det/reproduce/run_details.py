"""Sections of the report on how the numbers were made: loaded weights, pretraining, run time, environment, commands."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssql_det.core.json_files import read_json
from ssql_det.core.rows import package_versions
from ssql_det.core.scalar_writer import METRICS_NAME, read_scalars
from ssql_det.report.blocks import Block, CodeBlock, Collapsible, Heading, Paragraph, Table
from ssql_det.report.markup import escape_markup
from ssql_det.reproduce.plan import RunResults, format_commands, sum_minutes_by_kind

_KNN_KEYS = {"kNN at FP": "knn/FP", "kNN at 2w4a": "knn/2w4a"}  # by column title, the keys in metrics.jsonl


def build_run_details(results: RunResults) -> Iterator[Block]:
    yield from _describe_coverage(results)
    yield from _describe_pretraining(results)
    yield from _describe_minutes(results)
    yield from _describe_environment(results)
    yield from _list_commands(results)


def _describe_coverage(results: RunResults) -> Iterator[Block]:
    if not results.plan.has_kind("train"):
        return
    yield Heading("Loaded weights")
    yield Paragraph(
        "Training starts only if all weights of the backbone are loaded into the detector; heads start from random "
        "weights."
    )
    rows = []
    for step in results.list_done("train"):
        path, name = step.folder / "coverage.json", step.name.removeprefix("train-")
        if path.exists():
            rows.append((name, *_summarize_coverage(path)))
        else:
            rows.append((name, "random weights", "-", "-"))
    yield Table(("detector", "loaded", "tensors", "left out"), tuple(rows))


def _summarize_coverage(path: Path) -> tuple[str, str, str]:
    """The percentage of the backbone that was loaded, the number of loaded tensors, and why others were left out."""
    coverage = read_json(path, f"delete {path.parent} to train again", _is_coverage)
    reasons = Counter(map(str, coverage["left_out"].values()))
    left_out = "; ".join(f"{count}: {reason}" for reason, count in reasons.items()) or "none"
    return f"{coverage['percent']:.1f} %", str(len(coverage["used"])), escape_markup(left_out)


def _is_coverage(content: Any) -> bool:
    match content:
        case {"percent": int() | float(), "used": [*_], "left_out": {}}:
            return True
    return False


def _describe_pretraining(results: RunResults) -> Iterator[Block]:
    rows = []
    for step in results.list_done("pretrain"):
        path = step.folder / METRICS_NAME
        last: dict[str, float] = {}
        for record in read_scalars(path) if path.exists() else ():
            last |= {name: value for name, value in record.items() if value is not None}
        if "loss" in last:
            formats = {"loss": ".4f", "spread": ".2f", **dict.fromkeys(_KNN_KEYS.values(), ".1f")}
            cells = [format(last[name], spec) if name in last else "-" for name, spec in formats.items()]
            rows.append((step.folder.name, str(last["step"] + 1), *cells))
    if rows:
        yield Heading("Pretraining")
        yield Paragraph(
            "Spread: near 1, features point in all directions; near 0, features have collapsed. A kNN accuracy far "
            "below the other runs indicates a partial collapse, whatever the spread."
        )
        yield Table(("run", "steps", "last loss", "spread", *_KNN_KEYS), tuple(rows))


def _describe_minutes(results: RunResults) -> Iterator[Block]:
    yield Heading("Run time")
    yield Table(("steps", "count", "minutes, summed over jobs"), sum_minutes_by_kind(results))
    yield Paragraph(f"The last run took {results.minutes:.1f} minutes; cached steps were not run again.")


def _describe_environment(results: RunResults) -> Iterator[Block]:
    rows = [row for experiment_rows in results.rows.values() for row in experiment_rows]
    engines = sorted({row.engine for row in rows if row.engine})
    versions = {**package_versions(), **(rows[-1].versions if rows else {})}
    yield Heading("Environment")
    lines = [
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        *([f"detection engine: {' and '.join(engines)}"] if engines else []),
        *(f"{name} {version}" for name, version in versions.items()),
    ]
    yield CodeBlock("\n".join(lines))


def _list_commands(results: RunResults) -> Iterator[Block]:
    yield Heading("Commands")
    yield Paragraph("Each step is one command. Run in this order, the commands give the same rows.")
    commands = format_commands(results.plan)
    yield Collapsible(f"All {len(results.plan.steps)} commands", (CodeBlock(commands),))
