"""Write the report and the tables of a run from the files that its steps made, such as result rows and images.

The report lists what is missing, with the reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ssql_det.analyze.page import build_term_tables, read_terms
from ssql_det.core.rows import Row, finite_or_none
from ssql_det.images.reading import read_rgb
from ssql_det.images.results import encode_jpeg, read_panels
from ssql_det.report.blocks import Block, Collapsible, Figure, Heading, ItemList, Paragraph, Slides, Table
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

_CHARTED_METRICS: Mapping[str, tuple[str, str]] = {  # metric: title of the chart, suffix of the chart's file name
    "bbox/AP": ("AP of boxes", "boxes"),
    "segm/AP": ("AP of masks", "masks"),
    "linear/top1": ("Top-1", "top1"),
}
_COSTS = {"MB": "MB", "Gbit-ops": "GBOPs"}  # printed name: metric of result rows
_MODELS = {"bbox/AP": "detector", "linear/top1": "probe"}  # what is evaluated, by the metric of the experiment
_SUMMARY_BITS = ("8w8a", "4w4a", "2w4a")
_MAX_OPEN_TSNE_MAPS = 4  # if there are more, all are collapsed, together with the tables of loss terms


def write_tables(results: RunResults) -> Iterator[Table]:
    """Write ``tables/table6.md``, ``table6.csv`` and so on; yield an overview of each table for the terminal."""
    for number, comparison in results.comparisons.items():
        experiment = results.list_experiments(number)[0]
        path = results.plan.out / "tables" / f"table{number}"
        write_text(path.with_suffix(".md"), render_markdown(Document("", build_comparison_blocks(comparison))))
        write_text(path.with_suffix(".csv"), render_csv(comparison))
        caption = f"Table {number}, {experiment.metric_name}: {comparison.dataset}"
        yield replace(build_overview_table(comparison, experiment.metric), caption=caption)


def write_report(results: RunResults) -> Path:
    """Write ``report/index.html``, one self-contained file, and ``report/report.md`` with its images."""
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
        f"{', or '.join(use for kind, use in uses.items() if plan.has_kind(kind))} at full precision and at low "
        f"bit-widths, from one copy of the weights. Every number is the mean of {' or '.join(map(str, seeds))} "
        f"seed{'' if seeds == [1] else 's'}. Command: `{results.command}`."
    )
    if plan.preset.data is not None:
        yield Paragraph(
            "These are toy data and small networks. The published values are shown for orientation and are not "
            "comparable with the measured values, which show the cost of low bit-widths, not how "
            f"good a {_get_subject(results)} is."
        )
    if plan.options.budget != 1:
        yield Paragraph(f"A trial with {plan.options.budget:g} of the data and the training: the numbers mean nothing.")
    if seeds == [1]:
        yield Paragraph(
            "With one seed, differences of a few points between methods mean nothing: they vary as much between seeds. "
            "`--seeds 3` gives standard deviations."
        )


def _summarize(results: RunResults) -> Iterator[Block]:
    """Each method's metric at full precision, and its decrease at low bit-widths, computed per seed.

    One table for detectors and one for probes; a method of two published tables is listed once.
    """
    yield Heading("What do low bit-widths cost?")
    has_rows = False
    for metric, model in _MODELS.items():
        experiments = [each for each in results.plan.experiments if each.metric == metric]
        rows = tuple(
            dict.fromkeys(row for each in experiments for row in _list_summary_rows(each, results.rows[each.name]))
        )
        if rows:
            has_rows = True
            columns = (f"lost at {bits}" for bits in _SUMMARY_BITS)
            yield Table((model, "method", f"{experiments[0].metric_name} at FP", *columns), rows, text_columns=2)
    if not has_rows:
        yield Paragraph("Nothing was measured at full precision, so losses are unknown.")


def _get_method_index(experiment: Experiment, method: str) -> int:
    """The position of a method in the preset, the same in all tables, so that the method keeps its colour in charts.

    Names are compared without the suffix "(ours)" of published tables, which means the paper's authors.
    """
    methods, method = list(map(strip_ours, experiment.methods)), strip_ours(method)
    return methods.index(method) if method in methods else len(methods)


def _list_summary_rows(experiment: Experiment, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """For each method: the experiment's title, method, metric at full precision, decrease at `_SUMMARY_BITS`."""
    values = {
        (_get_method(experiment, row), row.seed, row.bits): value
        for row in rows
        if row.dataset == experiment.dataset
        and (value := finite_or_none(row.metrics.get(experiment.metric))) is not None
    }
    methods = {method for method, _, _ in values}
    for method in sorted(methods, key=lambda each: (_get_method_index(experiment, each), each)):
        by_bits = {
            bits: {
                seed: value for (name, seed, row_bits), value in values.items() if (name, row_bits) == (method, bits)
            }
            for bits in ("FP", *_SUMMARY_BITS)
        }
        float_values = by_bits["FP"]
        decreases = [
            [float_values[seed] - value for seed, value in by_bits[bits].items() if seed in float_values]
            for bits in _SUMMARY_BITS
        ]
        if float_values:
            yield (experiment.title, escape_markup(method), *map(format_mean, ([*float_values.values()], *decreases)))


def _get_method(experiment: Experiment, row: Row) -> str:
    """The method of a result row as the published table prints it, without its suffix "(ours)"."""
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
        yield Paragraph("These steps are not done; run the same command to try again.")
        rows = [
            (step.name, outcome.state, escape_markup(outcome.reason), str(get_log_path(plan.out, step)))
            for step, outcome in missing
        ]
        yield Table(("step", "state", "reason", "log"), tuple(rows), text_columns=4)
    if plan.left_out:
        yield Collapsible("Published rows that were left out", (ItemList(plan.left_out),))


def _show_table(results: RunResults, number: int) -> Iterator[Block]:
    comparison, experiment = results.comparisons[number], results.list_experiments(number)[0]
    toy_title = f"{experiment.title}, on toy data, next to Table {number}"
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
        "The cost of a Mask R-CNN depends on the number of boxes: minimum to maximum over the detectors."
    )
    tables = (table for each in results.plan.experiments for table in _build_cost_tables(results, each))
    yield from dict.fromkeys(tables)


def _build_cost_tables(results: RunResults, experiment: Experiment) -> Iterator[Table]:
    rows = [row for row in results.rows[experiment.name] if row.dataset == experiment.dataset]
    bit_widths = tuple(dict.fromkeys(row.bits for row in rows))
    costs = [
        (name, *(_format_range([row.metrics.get(metric) for row in rows if row.bits == bits]) for bits in bit_widths))
        for name, metric in _COSTS.items()
    ]
    if bit_widths:
        yield Table((experiment.title, *bit_widths), tuple(costs))


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
        yield Paragraph("No detections were drawn: no predict step is done.")
    threshold = f", scores of at least {plan.preset.score_threshold}" if plan.preset.score_threshold else ""
    bit_widths = plan.preset.bits.replace(",", ", ")
    for step in steps:
        detector = step.name.removeprefix("predict-")
        for path in step.outputs:
            title = f"{detector}, image {path.stem}: one copy of weights at {bit_widths}{threshold}"
            yield Slides(title, tuple(_make_figures(f"{detector}-{path.stem}", path)))


def _make_figures(name: str, picture: Path) -> Iterator[Figure]:
    for panel, pixels in (read_panels(picture) or {"all": read_rgb(picture)}).items():
        yield Figure(f"{name}-{panel}.jpg", encode_jpeg(pixels), panel)


def _show_analysis(results: RunResults) -> Iterator[Block]:
    for step in results.list_done("analyze"):
        terms, *tsne_maps = step.outputs
        yield Heading("Features at low bit-widths")
        yield Paragraph(
            "Networks of the first seed, before any detector. The squared distance of a quantized network's features "
            "from their float target, both of unit length, is the sum of three terms: the shift by quantization "
            "(quantization), the distance between two views of an image (contrastive), and a cross term. A spread near "
            "0 means that features have collapsed, which also makes the quantization term small. For the weights see "
            f"`{step.folder.name}/report.html`."
        )
        tables = build_term_tables(read_terms(terms.read_text("utf-8")))
        blocks: tuple[Block, ...] = (*tables, *map(_make_tsne_figure, tsne_maps))
        if len(tsne_maps) > _MAX_OPEN_TSNE_MAPS:
            blocks = (Collapsible(f"Terms and maps of all {len(tsne_maps)} networks", blocks),)
        yield from blocks


def _make_tsne_figure(path: Path) -> Figure:
    name = path.stem.removeprefix("tsne_")
    caption = f"{name}: t-SNE of the backbone's features, all bit-widths embedded together, coloured by class"
    return Figure(path.name, path.read_bytes(), caption)
