"""A model card: what a file of weights is, what was measured of it, and how to use it, as Hugging Face's hub reads it.

Markdown with a YAML header, of which ``model-index`` has the metrics:
https://huggingface.co/docs/hub/model-cards#evaluation-results

>>> subject = CardSubject("ssql.pkl", "backbone", {"architecture": "resnet18"}, sha256="9f3c")
>>> build_card(subject, []).splitlines()[:3]
['---', 'library_name: ssql_det', 'pipeline_tag: image-feature-extraction']
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ssql_det.core.errors import UserError
from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.blocks import Block, CodeBlock, Heading, ItemList, Paragraph, Table
from ssql_det.report.document import Document
from ssql_det.report.markup import escape_markup
from ssql_det.report.measured_detectors import (
    FLOAT,
    TASKS,
    MeasuredDetector,
    get_main,
    get_unit,
    list_detectors_by_dataset,
    list_tasks,
)
from ssql_det.report.render_markdown import render_markdown
from ssql_det.report.row_groups import keep_newest

DETECTOR, BACKBONE = "detector", "backbone"
_HUB_TASKS = {DETECTOR: "object-detection", BACKBONE: "image-feature-extraction"}
_HUB_METRICS = {"AP": "mean_average_precision", "top1": "accuracy"}  # their types on the hub
_EMPTY = "-"


@dataclass(frozen=True)
class CardSubject:
    """What a card is about. Rows are of the weights with this ``sha256``, those that were converted or exported."""

    name: str  # of the file
    kind: str  # DETECTOR or BACKBONE
    properties: Mapping[str, str]  # such as the architecture, in the order of the card
    sha256: str
    bits: str = ""  # of a file that was exported at one bit-width
    scheme: str = ""  # with which it was quantized there
    commands: tuple[str, ...] = ()  # that use the file


def build_card(subject: CardSubject, rows: Sequence[Row]) -> str:
    """The card. Of its weights it has all rows, or for a file of one bit-width those at full precision and those that
    were quantized as the file is.

    Rows of which none is of these weights are an error: a card without its numbers would not be noticed.
    """
    own = keep_newest([row for row in rows if row.checkpoint_hash == subject.sha256])
    if rows and not own:
        others = ", ".join(sorted({row.checkpoint for row in rows})[:3])
        raise UserError(
            f"no row is of the weights of {subject.name} (SHA-256 {subject.sha256[:12]}...); these are of {others}"
        )
    quantized = subject.bits, subject.scheme
    shown = [row for row in own if not subject.bits or row.bits == FLOAT or (row.bits, row.scheme) == quantized]
    detectors = [each for of_dataset in list_detectors_by_dataset(shown).values() for each in of_dataset]
    header = yaml.safe_dump(_make_header(subject, detectors), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{header}---\n\n{render_markdown(Document(subject.name, tuple(_build_blocks(subject, detectors))))}"


def _make_header(subject: CardSubject, detectors: Sequence[MeasuredDetector]) -> dict[str, Any]:
    header: dict[str, Any] = {
        "library_name": "ssql_det",
        "pipeline_tag": _HUB_TASKS[subject.kind],
        "tags": ["quantization", "self-supervised-learning", _HUB_TASKS[subject.kind]],
    }
    results = [result for each in detectors for result in _list_results(subject, each)]
    return header | ({"model-index": [{"name": subject.name, "results": results}]} if results else {})


def _list_results(subject: CardSubject, detector: MeasuredDetector) -> Iterator[dict[str, Any]]:
    """The main metrics of the file's own bit-width, or of all; a metric without a value is left out."""
    for bits, rows in detector.rows_by_bits.items():
        if subject.bits in ("", bits):
            metrics = [
                {"type": _HUB_METRICS[get_main(task).rpartition("/")[2]], "name": _name(task, bits), "value": value}
                for task in list_tasks(rows)
                if (value := _round(detector.get_mean(bits, get_main(task)))) is not None
            ]
            dataset = rows[0].dataset
            result = {"task": {"type": _HUB_TASKS[subject.kind]}, "dataset": {"name": dataset, "type": dataset}}
            if metrics:
                yield {**result, "metrics": metrics}


def _name(task: str, bits: str) -> str:
    return f"{get_unit(get_main(task))} of {TASKS[task][0]} at {bits}"


def _round(value: float | None) -> float | None:
    finite = finite_or_none(value)
    return None if finite is None else round(finite, 2)


def _build_blocks(subject: CardSubject, detectors: Sequence[MeasuredDetector]) -> Iterator[Block]:
    own = {"bits": subject.bits, "quantization": subject.scheme}
    properties = {**subject.properties, **own, "SHA-256 of the weights": subject.sha256}
    yield ItemList(tuple(f"{name}: {escape_markup(value)}" for name, value in properties.items() if value))
    if detectors:
        yield Heading("What was measured")
        for each in detectors:
            yield _build_table(each)
    else:
        yield Paragraph("Nothing was measured with it yet.")
    if subject.commands:
        yield Heading("Use")
        yield CodeBlock("\n".join(subject.commands))


def _build_table(detector: MeasuredDetector) -> Table:
    first = detector.rows[0]
    columns = [f"{task}/{metric}" for task in list_tasks(detector.rows) for metric in TASKS[task][1]]
    columns += [cost for cost in ("MB", "GBOPs") if any(cost in row.metrics for row in detector.rows)]
    rows = [(bits, *(_format(detector.get_mean(bits, column)) for column in columns)) for bits in detector.rows_by_bits]
    quantized = f"; {escape_markup(first.scheme)}, scope {first.scope}, {escape_markup(str(first.calibration))}"
    return Table(("bits", *columns), tuple(rows), caption=f"On {escape_markup(first.dataset)}{quantized}.")


def _format(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.2f}"
