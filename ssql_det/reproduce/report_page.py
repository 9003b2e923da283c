"""Tables and report on a folder: curves, cost, detections, what was loaded, where the minutes went, commands.

Everything is read from what the steps left: rows, coverage, pictures. What is not there is told, not left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from ssql_det.analyze.page import build_term_tables, read_terms
from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.blocks import Block, Collapsible, Figure, Heading, ItemList, Paragraph, Table
from ssql_det.report.comparison_blocks import build_chart, build_comparison_blocks, build_overview_table, round_to_tenth
from ssql_det.report.display_names import strip_ours
from ssql_det.report.document import Document
from ssql_det.report.markup import escape_markup
from ssql_det.report.page_files import write_page, write_text
from ssql_det.report.published import load_published_table
from ssql_det.report.render_csv import render_csv
from ssql_det.report.render_markdown import render_markdown
from ssql_det.report.table_sources import get_source
from ssql_det.reproduce.experiments import Experiment
from ssql_det.reproduce.plan import RunResults
from ssql_det.reproduce.run_details import build_run_details
from ssql_det.reproduce.runner import DONE, get_log_path

_FIGURES: Mapping[str, tuple[str, str]] = {  # of metrics, with the ends of charts' names
    "bbox/AP": ("AP of boxes", "boxes"),
    "segm/AP": ("AP of masks", "masks"),
    "linear/top1": ("Top-1", "top1"),
}
_COSTS = {"MB": "MB", "Gbit-ops": "GBOPs"}
_KINDS = {"bbox/AP": "detector", "linear/top1": "probe"}
_LOW = ("8w8a", "4w4a", "2w4a")
_MOST_PIXELS = 1800  # across a picture
_FEW = 4  # networks that a reader can take in side by side


def write_tables(found: RunResults) -> Iterator[Table]:
    """``tables/table6.md`` and ``.csv``; gives what to show of each on a terminal."""
    for number, table in found.tables.items():
        part = found.parts_of(number)[0]
        place = found.plan.out / "tables" / f"table{number}"
        write_text(place.with_suffix(".md"), render_markdown(Document("", build_comparison_blocks(table))))
        write_text(place.with_suffix(".csv"), render_csv(table))
        yield replace(
            build_overview_table(table, part.metric), caption=f"Table {number}, {part.figure}: {table.dataset}"
        )


def write_report(found: RunResults) -> Path:
    """``report/index.html``, one file; beside it ``report.md`` with its pictures."""
    return write_page(build_report(found), found.plan.out / "report" / "index.html")


def build_report(reproduction: RunResults) -> Document:
    """
    >>> page = build_report(RunResults(plan, outcomes, "ssql-det reproduce --preset mini", minutes=8.9))
    >>> as_html(page), render_markdown(page)
    """
    return Document(
        f"What bits cost a {_subject(reproduction)}: preset {reproduction.plan.preset.name}",
        (
            *_beginning(reproduction),
            *_answer(reproduction),
            *_missing(reproduction),
            *(block for number in reproduction.tables for block in _table(reproduction, number)),
            *_cost(reproduction),
            *_pictures(reproduction),
            *_features(reproduction),
            *build_run_details(reproduction),
        ),
    )


def _subject(of: RunResults) -> str:
    return "detector" if of.plan.has("train") else "backbone"


def _beginning(of: RunResults) -> Iterator[Block]:
    preset, seeds = of.plan.preset, sorted({of.plan.seeds(part) for part in of.plan.parts})
    uses = {"train": "moved to a detector, and that evaluated", "probe": "frozen under a linear layer, and evaluated"}
    yield Paragraph(
        "Backbones pretrained with and without SSQL (Cao et al., ECCV 2022), each "
        f"{', or '.join(use for kind, use in uses.items() if of.plan.has(kind))} at full precision and at few "
        f"bits, from one copy of its weights. Every number is the mean of {' or '.join(map(str, seeds))} "
        f"seed{'' if seeds == [1] else 's'}; all of it was made by `{of.command}`."
    )
    if preset.data is not None:
        yield Paragraph(
            "These are toy data and small networks. The published figures stand beside ours to show what the tables "
            f"are, and cannot be compared with them: ours say what bits cost, not how good a {_subject(of)} is."
        )
    if of.plan.choices.budget != 1:
        yield Paragraph(
            f"This is a trial with {of.plan.choices.budget:g} of the data and the training: its figures mean nothing."
        )
    if seeds == [1]:
        yield Paragraph(
            "With one seed, differences of a few points between methods mean nothing: seeds alone differ by as much. "
            "`--seeds 3` gives deviations."
        )


def _answer(of: RunResults) -> Iterator[Block]:
    """What a reader came for: what each method reaches at full precision, and what each seed loses of it at few bits.

    A table of detectors and one of probes. What two of the published tables ask for stands once.
    """
    yield Heading("What does it cost at few bits?")
    nothing = True
    for metric, kind in _KINDS.items():
        parts = [part for part in of.plan.parts if part.metric == metric]
        rows = tuple(dict.fromkeys(row for part in parts for row in _losses(part, of.rows[part.name])))
        if rows:
            nothing = False
            yield Table((kind, "method", f"{parts[0].figure} at FP", *(f"lost at {bits}" for bits in _LOW)), rows, 2)
    if nothing:
        yield Paragraph("Nothing was measured at FP, so what is lost cannot be told.")


def _place(part: Experiment, method: str) -> int:
    """The same in tables that print different methods: so a method has one colour."""
    known, plain = [strip_ours(name) for name in part.methods], strip_ours(method)
    return known.index(plain) if plain in known else len(known)


def _losses(part: Experiment, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    figures = {
        (_name(part, row), row.seed, row.bits): figure
        for row in rows
        if row.dataset == part.dataset and (figure := finite_or_none(row.metrics.get(part.metric))) is not None
    }
    for method in sorted({name for name, _, _ in figures}, key=lambda name: (_place(part, name), name)):
        of_bits = {
            width: {seed: figures[name, seed, bits] for name, seed, bits in figures if (name, bits) == (method, width)}
            for width in ("FP", *_LOW)
        }
        whole = of_bits["FP"]
        losses = [[whole[seed] - left for seed, left in of_bits[bits].items() if seed in whole] for bits in _LOW]
        if whole:
            yield (part.title, escape_markup(method), *map(format_mean, ([*whole.values()], *losses)))


def _name(part: Experiment, row: Row) -> str:
    """As its table prints it."""
    return strip_ours(get_source(part.table).get_group(row, load_published_table(part.table)).method)


def format_mean(values: Sequence[float]) -> str:
    """The mean, and the deviation of several.

    >>> format_mean([93.1, 92.1])
    '92.6 ± 0.7'
    """
    if not values:
        return "-"
    mean = f"{round_to_tenth(statistics.fmean(values)):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _missing(of: RunResults) -> Iterator[Block]:
    lost = [(step, of.outcomes[step.name]) for step in of.plan.steps if of.outcomes[step.name].state != DONE]
    if lost:
        yield Heading("What is missing")
        yield Paragraph("These steps are not done; the same command tries them again.")
        rows = [
            (step.name, outcome.state, escape_markup(outcome.reason), str(get_log_path(of.plan.out, step)))
            for step, outcome in lost
        ]
        yield Table(("step", "state", "why", "log"), tuple(rows), text_columns=4)
    if of.plan.left_out:
        yield Collapsible("Published rows that were not made", (ItemList(of.plan.left_out),))


def _table(of: RunResults, number: int) -> Iterator[Block]:
    table, part = of.tables[number], of.parts_of(number)[0]
    on_toys = f"{part.title}, on toy data, beside Table {number}"
    yield Heading(on_toys if of.plan.preset.data else f"Table {number}: {escape_markup(table.title)}")
    metrics = [metric for metric in _FIGURES if metric in table.metrics]
    for metric in metrics:
        figure, name = _FIGURES[metric]
        chart = build_chart(table, metric, f"{part.name}-{name}", f"{figure} over bit-widths")
        yield replace(chart, curves=tuple(sorted(chart.curves, key=lambda curve: _place(part, curve.name))))
    for metric in metrics:
        yield Heading(f"{_FIGURES[metric][0]}, {part.title}", level=3)
        yield build_overview_table(table, metric)
    whole = build_comparison_blocks(table, with_commands=False)
    yield Collapsible(
        "All metrics", tuple(each for each in whole if not (isinstance(each, Heading) and each.level == 2))
    )


def _cost(of: RunResults) -> Iterator[Block]:
    yield Heading("Size and cost")
    yield Paragraph(
        "MB of parameters; Gbit-ops: billions of multiply-adds times the bits of both factors, of one test image. "
        "Where a mask is made of each box that is found, detectors differ: least to most."
    )
    yield from dict.fromkeys(table for part in of.plan.parts for table in _costs(of, part))


def _costs(of: RunResults, part: Experiment) -> Iterator[Table]:
    rows = [row for row in of.rows[part.name] if row.dataset == part.dataset]
    widths = tuple(dict.fromkeys(row.bits for row in rows))
    figures = [
        (name, *(_range([row.metrics.get(key) for row in rows if row.bits == bits]) for bits in widths))
        for name, key in _COSTS.items()
    ]
    if widths:
        yield Table((part.title, *widths), tuple(figures))


def _range(values: Sequence[float | None]) -> str:
    figures = [_figure(value) for value in sorted(value for value in values if value is not None)]
    return "-" if not figures else figures[0] if figures[0] == figures[-1] else f"{figures[0]} to {figures[-1]}"


def _figure(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _pictures(of: RunResults) -> Iterator[Block]:
    if not of.plan.has("predict"):
        return
    yield Heading("Detections")
    drawn = list(of.done("predict"))
    if not drawn:
        yield Paragraph("No step has drawn any.")
    for step in drawn:
        detector = step.name.removeprefix("predict-")
        least = f", from a score of {of.plan.preset.score}" if of.plan.preset.score else ""
        for path in step.makes:
            words = (
                f"{detector}, image {path.stem}: one copy of weights at {of.plan.preset.bits.replace(',', ', ')}{least}"
            )
            yield Figure(f"{detector}-{path.stem}.jpg", _smaller(path), words)


def _smaller(path: Path) -> bytes:
    """Pictures side by side are wide; a page has room for less."""
    image: Any = cv2.imread(str(path))
    scale = min(1.0, _MOST_PIXELS / image.shape[1])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1])


def _features(of: RunResults) -> Iterator[Block]:
    """What `analyze` left."""
    for step in of.done("analyze"):
        terms, *maps = step.makes
        yield Heading("What few bits do to features")
        yield Paragraph(
            "Networks of the first seed, before any detector. The squared distance of a quantized network's features "
            "from their float target, both of unit length, is the sum of three terms: what quantization moves, what "
            "two views of an image are apart (the contrastive term), and the cross term. With a spread near 0 features "
            f"have collapsed, and nothing is left to move. Weights are in `{step.folder.name}/report.html`."
        )
        blocks: tuple[Block, ...] = (*build_term_tables(read_terms(terms.read_text("utf-8"))), *map(_map, maps))
        if len(maps) > _FEW:
            blocks = (Collapsible(f"Terms and maps of all {len(maps)} networks", blocks),)
        yield from blocks


def _map(path: Path) -> Figure:
    name = path.stem.removeprefix("tsne_")
    words = f"{name}: t-SNE of the backbone's features, all bit-widths embedded together, coloured by class"
    return Figure(path.name, path.read_bytes(), words)
