"""The report and the tables of a run, as files, made from what its steps wrote: rows, coverage files, images.

What is missing is listed with the reason, not passed over.
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
from ssql_det.report.comparison_blocks import (
    build_chart,
    build_comparison_blocks,
    build_overview_table,
    round_to_tenth,
)
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

_CHARTED_METRICS: Mapping[str, tuple[str, str]] = {  # their titles, and the ends of the charts' file names
    "bbox/AP": ("AP of boxes", "boxes"),
    "segm/AP": ("AP of masks", "masks"),
    "linear/top1": ("Top-1", "top1"),
}
_COSTS = {"MB": "MB", "Gbit-ops": "GBOPs"}
_MODELS = {"bbox/AP": "detector", "linear/top1": "probe"}  # by the metric of their experiments
_SUMMARY_BITS = ("8w8a", "4w4a", "2w4a")
_MAX_IMAGE_WIDTH = 1800  # pixels
_MAX_OPEN_MAPS = 4  # more are collapsed


def write_tables(results: RunResults) -> Iterator[Table]:
    """Write ``tables/table6.md``, ``.csv`` and so on; an overview of each for the terminal."""
    for number, comparison in results.comparisons.items():
        experiment = results.list_experiments(number)[0]
        path = results.plan.out / "tables" / f"table{number}"
        write_text(path.with_suffix(".md"), render_markdown(Document("", build_comparison_blocks(comparison))))
        write_text(path.with_suffix(".csv"), render_csv(comparison))
        caption = f"Table {number}, {experiment.metric_name}: {comparison.dataset}"
        yield replace(build_overview_table(comparison, experiment.metric), caption=caption)


def write_report(results: RunResults) -> Path:
    """Write ``report/index.html``, one self-contained file, and beside it ``report.md`` with its images."""
    return write_page(build_report(results), results.plan.out / "report" / "index.html")


def build_report(results: RunResults) -> Document:
    return Document(
        f"What bits cost a {_get_subject(results)}: preset {results.plan.preset.name}",
        (
            *_introduce(results),
            *_summarize(results),
            *_list_missing(results),
            *(block for number in results.comparisons for block in _show_table(results, number)),
            *_show_costs(results),
            *_show_detections(results),
            *_show_analysis(results),
            *build_run_details(results),
        ),
    )


def _get_subject(results: RunResults) -> str:
    return "detector" if results.plan.has_kind("train") else "backbone"


def _introduce(results: RunResults) -> Iterator[Block]:
    plan = results.plan
    seeds = sorted({plan.count_seeds(experiment) for experiment in plan.experiments})
    uses = {"train": "transferred to a detector that is evaluated", "probe": "evaluated with a linear probe"}
    yield Paragraph(
        "Backbones pretrained with and without SSQL (Cao et al., ECCV 2022), each "
        f"{', or '.join(use for kind, use in uses.items() if plan.has_kind(kind))} at full precision and at few "
        f"bits, from one copy of its weights. Every number is the mean of {' or '.join(map(str, seeds))} "
        f"seed{'' if seeds == [1] else 's'}; all of it was made by `{results.command}`."
    )
    if plan.preset.data is not None:
        yield Paragraph(
            "These are toy data and small networks. The published values are shown for orientation and cannot be "
            f"compared with ours, which say what bits cost, not how good a {_get_subject(results)} is."
        )
    if plan.options.budget != 1:
        yield Paragraph(f"A trial with {plan.options.budget:g} of the data and the training: its numbers mean nothing.")
    if seeds == [1]:
        yield Paragraph(
            "With one seed, differences of a few points between methods mean nothing: seeds alone differ by as much. "
            "`--seeds 3` gives standard deviations."
        )


def _summarize(results: RunResults) -> Iterator[Block]:
    """What each method reaches at full precision, and what each seed loses of it at few bits.

    One table of detectors and one of probes; a method that two published tables have is listed once.
    """
    yield Heading("What does it cost at few bits?")
    has_rows = False
    for metric, model in _MODELS.items():
        experiments = [each for each in results.plan.experiments if each.metric == metric]
        rows = tuple(dict.fromkeys(row for each in experiments for row in _list_losses(each, results.rows[each.name])))
        if rows:
            has_rows = True
            losses = (f"lost at {bits}" for bits in _SUMMARY_BITS)
            yield Table((model, "method", f"{experiments[0].metric_name} at FP", *losses), rows, text_columns=2)
    if not has_rows:
        yield Paragraph("Nothing was measured at full precision, so losses are unknown.")


def _get_method_index(experiment: Experiment, method: str) -> int:
    """The same in all tables, so that a method keeps its colour."""
    known, name = [strip_ours(each) for each in experiment.methods], strip_ours(method)
    return known.index(name) if name in known else len(known)


def _list_losses(experiment: Experiment, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    values = {
        (_get_method(experiment, row), row.seed, row.bits): value
        for row in rows
        if row.dataset == experiment.dataset
        and (value := finite_or_none(row.metrics.get(experiment.metric))) is not None
    }
    methods = {method for method, _, _ in values}
    for method in sorted(methods, key=lambda each: (_get_method_index(experiment, each), each)):
        by_bits = {
            width: {seed: values[name, seed, bits] for name, seed, bits in values if (name, bits) == (method, width)}
            for width in ("FP", *_SUMMARY_BITS)
        }
        full = by_bits["FP"]
        losses = [
            [full[seed] - value for seed, value in by_bits[bits].items() if seed in full] for bits in _SUMMARY_BITS
        ]
        if full:
            yield (experiment.title, escape_markup(method), *map(format_mean, ([*full.values()], *losses)))


def _get_method(experiment: Experiment, row: Row) -> str:
    """The method as the table prints it."""
    return strip_ours(get_source(experiment.table).get_group(row, load_published_table(experiment.table)).method)


def format_mean(values: Sequence[float]) -> str:
    """The mean, with the standard deviation of several values.

    >>> format_mean([93.1, 92.1])
    '92.6 ± 0.7'
    """
    if not values:
        return "-"
    mean = f"{round_to_tenth(statistics.fmean(values)):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _list_missing(results: RunResults) -> Iterator[Block]:
    plan = results.plan
    missing = [(step, results.outcomes[step.name]) for step in plan.steps if results.outcomes[step.name].state != DONE]
    if missing:
        yield Heading("What is missing")
        yield Paragraph("These steps are not done; the same command tries them again.")
        rows = [
            (step.name, outcome.state, escape_markup(outcome.reason), str(get_log_path(plan.out, step)))
            for step, outcome in missing
        ]
        yield Table(("step", "state", "reason", "log"), tuple(rows), text_columns=4)
    if plan.left_out:
        yield Collapsible("Published rows that were left out", (ItemList(plan.left_out),))


def _show_table(results: RunResults, number: int) -> Iterator[Block]:
    comparison, experiment = results.comparisons[number], results.list_experiments(number)[0]
    toy_title = f"{experiment.title}, on toy data, beside Table {number}"
    yield Heading(toy_title if results.plan.preset.data else f"Table {number}: {escape_markup(comparison.title)}")
    metrics = [metric for metric in _CHARTED_METRICS if metric in comparison.metrics]
    for metric in metrics:
        title, suffix = _CHARTED_METRICS[metric]
        chart = build_chart(comparison, metric, f"{experiment.name}-{suffix}", f"{title} over bit-widths")
        curves = sorted(chart.curves, key=lambda curve: _get_method_index(experiment, curve.name))
        yield replace(chart, curves=tuple(curves))
    for metric in metrics:
        yield Heading(f"{_CHARTED_METRICS[metric][0]}, {experiment.title}", level=3)
        yield build_overview_table(comparison, metric)
    blocks = build_comparison_blocks(comparison, with_commands=False)
    without_title = tuple(block for block in blocks if not (isinstance(block, Heading) and block.level == 2))
    yield Collapsible("All metrics", without_title)


def _show_costs(results: RunResults) -> Iterator[Block]:
    yield Heading("Size and cost")
    yield Paragraph(
        "MB of parameters; Gbit-ops: billions of multiply-adds times the bits of both factors, for one test image. "
        "A detector that makes a mask for each box has no fixed cost: minimum to maximum over detectors."
    )
    tables = (table for each in results.plan.experiments for table in _build_cost_tables(results, each))
    yield from dict.fromkeys(tables)


def _build_cost_tables(results: RunResults, experiment: Experiment) -> Iterator[Table]:
    rows = [row for row in results.rows[experiment.name] if row.dataset == experiment.dataset]
    widths = tuple(dict.fromkeys(row.bits for row in rows))
    costs = [
        (name, *(_format_range([row.metrics.get(metric) for row in rows if row.bits == bits]) for bits in widths))
        for name, metric in _COSTS.items()
    ]
    if widths:
        yield Table((experiment.title, *widths), tuple(costs))


def _format_range(values: Sequence[float | None]) -> str:
    texts = [_format_cost(value) for value in sorted(value for value in values if value is not None)]
    return "-" if not texts else texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _format_cost(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _show_detections(results: RunResults) -> Iterator[Block]:
    plan = results.plan
    if not plan.has_kind("predict"):
        return
    yield Heading("Detections")
    steps = list(results.list_done("predict"))
    if not steps:
        yield Paragraph("No step has drawn any.")
    score = f", scores of at least {plan.preset.score}" if plan.preset.score else ""
    widths = plan.preset.bits.replace(",", ", ")
    for step in steps:
        detector = step.name.removeprefix("predict-")
        for path in step.outputs:
            caption = f"{detector}, image {path.stem}: one copy of weights at {widths}{score}"
            yield Figure(f"{detector}-{path.stem}.jpg", _shrink_image(path), caption)


def _shrink_image(path: Path) -> bytes:
    """As JPEG, at most as wide as a page shows it."""
    image: Any = cv2.imread(str(path))
    scale = min(1.0, _MAX_IMAGE_WIDTH / image.shape[1])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1])


def _show_analysis(results: RunResults) -> Iterator[Block]:
    for step in results.list_done("analyze"):
        terms, *maps = step.outputs
        yield Heading("What few bits do to features")
        yield Paragraph(
            "Networks of the first seed, before any detector. The squared distance of a quantized network's features "
            "from their float target, both of unit length, is the sum of three terms: how far quantization moves them "
            "(quantization), how far apart two views of an image are (contrastive), and a cross term. With a spread "
            "near 0 features have collapsed, and quantization has nothing left to move. Weights are in "
            f"`{step.folder.name}/report.html`."
        )
        tables = build_term_tables(read_terms(terms.read_text("utf-8")))
        blocks: tuple[Block, ...] = (*tables, *map(_make_map_figure, maps))
        if len(maps) > _MAX_OPEN_MAPS:
            blocks = (Collapsible(f"Terms and maps of all {len(maps)} networks", blocks),)
        yield from blocks


def _make_map_figure(path: Path) -> Figure:
    name = path.stem.removeprefix("tsne_")
    caption = f"{name}: t-SNE of the backbone's features, all bit-widths embedded together, coloured by class"
    return Figure(path.name, path.read_bytes(), caption)
