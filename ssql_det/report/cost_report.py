"""A page for any result rows: what each bit-width costs each detector, how large it is, how fast it runs.

Published figures are not on this page; for those see `report.comparison`.

>>> build_cost_report([]).title
'What few bits cost'
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssql_det.core.rows import Row, finite_or_none, format_metric
from ssql_det.report.blocks import (
    Block,
    Chart,
    CodeBlock,
    Collapsible,
    Curve,
    Heading,
    ItemList,
    Paragraph,
    Scatter,
    Series,
    Table,
    Tile,
    Tiles,
)
from ssql_det.report.comparison_blocks import round_to_tenth
from ssql_det.report.display_names import format_protocol, format_scheme
from ssql_det.report.document import Document
from ssql_det.report.markup import escape_markup, strip_markup
from ssql_det.report.measured_detectors import (
    FLOAT,
    TASKS,
    MeasuredDetector,
    get_main,
    get_unit,
    list_detectors_by_dataset,
    list_tasks,
)
from ssql_det.report.row_groups import Measurement, keep_newest, list_separate, sort_bits

TITLE = "What few bits cost"
MB, GBOPS = "MB", "GBOPs"
_EMPTY = "-"


@dataclass(frozen=True)
class Speed:
    """How long a detector takes for an image: a row of a bench."""

    checkpoint: str  # a file name
    checkpoint_hash: str
    runtime: str
    bits: str
    milliseconds: float
    file_mb: float | None
    setting: str  # the machine, threads and the image's size


def build_cost_report(rows: Sequence[Row], speeds: Sequence[Speed] = (), command: str = "") -> Document:
    """``rows`` may be of detectors and of probes, in any order; ``command`` wrote the page."""
    newest = keep_newest(rows)
    blocks: list[Block] = []
    by_dataset = list_detectors_by_dataset(newest)
    detectors = [each for of_dataset in by_dataset.values() for each in of_dataset]
    if detectors:
        headline = _say_headline(detectors)
        blocks += [Paragraph(headline)] if headline else []
        has_several = len(by_dataset) > 1
        blocks.append(Tiles(tuple(_make_tile(each, has_several) for each in detectors)))
    for index, (dataset, of_dataset) in enumerate(by_dataset.items()):
        blocks += _build_dataset(dataset, of_dataset, f"{index}", speeds)
    if speeds:
        blocks += _build_speeds(speeds)
    blocks += [Heading("How this was measured"), *_build_settings(newest, len(rows) - len(newest), command)]
    return Document(TITLE, tuple(blocks))


def get_headline(page: Document) -> str:
    """What the page begins with, in one line; empty if nothing was measured at full precision and at a bit-width."""
    first = page.blocks[0]
    return strip_markup(first.text) if isinstance(first, Paragraph) else ""


# ---- the beginning -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Headline:
    """What a detector loses at the bit-width that the page begins with."""

    detector: MeasuredDetector
    metric: str
    bits: str
    mean: float
    loss: float

    @classmethod
    def of(cls, detector: MeasuredDetector) -> _Headline | None:
        """``None`` if it was not measured at full precision and at a lower bit-width."""
        bits, metric = detector.choose_headline(), _get_first_main(detector)
        if metric is None or bits == FLOAT:
            return None
        mean, loss = detector.get_mean(bits, metric), detector.get_loss(bits, metric)
        if mean is None or loss is None or loss.mean is None:
            return None
        return cls(detector, metric, bits, mean, loss.mean)

    @property
    def key(self) -> tuple[int, str, str]:
        """Equal for headlines that can be compared; detectors come before probes."""
        return list(TASKS).index(self.metric.partition("/")[0]), self.detector.rows[0].dataset, self.bits


def _say_headline(detectors: Sequence[MeasuredDetector]) -> str:
    """One sentence about the best detector among those that can be compared with the first one."""
    headlines = [headline for each in detectors if (headline := _Headline.of(each))]
    if not headlines:
        return ""
    first = min(headlines, key=lambda each: each.key[0])
    comparable = [each for each in headlines if each.key == first.key]
    best = max(comparable, key=lambda each: each.mean)
    size, unit = _describe_size(best.detector, best.bits), get_unit(best.metric)
    cost = f"cost {best.loss:.1f} {unit}" if best.loss > 0.05 else "cost nothing"
    share = f" and take {size}" if size else ""
    name = f", at best: {escape_markup(best.detector.name)}" if len(comparable) > 1 else ""
    return f"{_say_bits(best.bits)} {cost}{share}{name}."


def _make_tile(detector: MeasuredDetector, has_several_datasets: bool) -> Tile:
    bits, main, headline = detector.choose_headline(), _get_first_main(detector), _Headline.of(detector)
    mean = detector.get_mean(bits, main) if main else None
    name, size = escape_markup(detector.name), _describe_size(detector, bits)
    if has_several_datasets:
        name += f", {escape_markup(detector.rows[0].dataset)}"
    if main is None or mean is None:
        return Tile(name, "not measured", "")
    if headline is None:
        return Tile(name, f"{mean:.1f} {get_unit(main)}", "; ".join(filter(None, [f"at {bits}", size])))
    texts = [f"at {bits}: {mean:.1f} of {detector.get_mean(FLOAT, main):.1f}", size]
    return Tile(name, f"{round_to_tenth(-headline.loss):+.1f} {get_unit(main)}", "; ".join(filter(None, texts)))


def _get_first_main(detector: MeasuredDetector) -> str | None:
    tasks = list_tasks(detector.rows)
    return get_main(tasks[0]) if tasks else None


def _describe_size(detector: MeasuredDetector, bits: str) -> str:
    """Such as "1/7.9 of the size (0.29 of 2.31 MB)"."""
    size, float_size = detector.get_mean(bits, MB), detector.get_mean(FLOAT, MB)
    if size is None or bits == FLOAT or not size:
        return ""
    return f"{size:.3g} MB" if float_size is None else f"1/{float_size / size:.1f} of the size"


def _say_bits(bits: str) -> str:
    """
    >>> _say_bits("4w4a"), _say_bits("2w4a")
    ('4 bits', '2-bit weights with 4-bit activations')
    """
    pair = re.fullmatch(r"(\d+)w(\d+)a", bits)
    if pair is None:
        return bits
    return f"{pair[1]} bits" if pair[1] == pair[2] else f"{pair[1]}-bit weights with {pair[2]}-bit activations"


# ---- a data set ----------------------------------------------------------------------------------------------------


def _build_dataset(
    dataset: str, detectors: Sequence[MeasuredDetector], name: str, speeds: Sequence[Speed]
) -> Iterator[Block]:
    yield Heading(f"On {escape_markup(dataset)}")
    for task in list_tasks(row for each in detectors for row in each.rows):
        main, title = get_main(task), f"{get_unit(get_main(task))} of {TASKS[task][0]}"
        yield _build_overview(detectors, task)
        if len({bits for each in detectors for bits in each.rows_by_bits}) > 1:
            yield _build_chart(detectors, main, f"{task}-bits-{name}", f"{title} by bit-width")
        yield from _build_scatters(detectors, main, f"{task}-{{}}-{name}", title, speeds)
        details = Paragraph("Means over seeds ± standard deviation (number of seeds).")
        yield Collapsible(f"All metrics of {TASKS[task][0]}", (details, *_build_details(detectors, task)))
        if by_class := list(_build_class_tables(detectors, task)):
            yield Collapsible(f"AP of each class, {TASKS[task][0]}", tuple(by_class))


def _build_chart(detectors: Sequence[MeasuredDetector], metric: str, name: str, title: str) -> Chart:
    bit_widths = sort_bits(bits for each in detectors for bits in each.rows_by_bits)
    curves = []
    for each in detectors:
        measured = [each.get(bits, metric) for bits in bit_widths]
        if any(value is not None and value.n for value in measured):
            means, deviations = ([getattr(value, field, None) for value in measured] for field in ("mean", "std"))
            curves.append(Curve(each.name, tuple(means), tuple(deviations)))
    return Chart(name, title, bit_widths, tuple(curves), get_unit(metric), list_separate(bit_widths))


def _build_scatters(
    detectors: Sequence[MeasuredDetector], metric: str, name: str, title: str, speeds: Sequence[Speed]
) -> Iterator[Scatter]:
    """The metric over size, over bit-operations and over measured time, where they are not all the same."""
    for cost, words, label in ((MB, "size", "MB of parameters"), (GBOPS, "bit-operations", "10⁹ bit-operations")):
        series = [Series(each.name, _list_points(each, metric, cost)) for each in detectors]
        if _has_several_costs(series):
            kept = tuple(each for each in series if each.points)
            yield Scatter(name.format(cost.lower()), f"{title} over {words}", kept, label, get_unit(metric), True)
    timed = [Series(each.name, _list_timed_points(each, metric, speeds)) for each in detectors]
    if _has_several_costs(timed):
        kept, label = tuple(each for each in timed if each.points), "ms for an image"
        yield Scatter(name.format("ms"), f"{title} over measured time", kept, label, get_unit(metric), True)


def _has_several_costs(series: Sequence[Series]) -> bool:
    return len({cost for each in series for cost, _ in each.points}) > 1


def _list_points(detector: MeasuredDetector, metric: str, cost: str) -> tuple[tuple[float, float], ...]:
    pairs = ((detector.get_mean(bits, cost), detector.get_mean(bits, metric)) for bits in detector.rows_by_bits)
    return tuple(sorted((x, y) for x, y in pairs if x is not None and y is not None))


def _list_timed_points(
    detector: MeasuredDetector, metric: str, speeds: Sequence[Speed]
) -> tuple[tuple[float, float], ...]:
    """The least time of each bit-width among the runtimes."""
    hashes = {row.checkpoint_hash for row in detector.rows if row.checkpoint_hash}
    times: dict[str, float] = {}
    for speed in speeds:
        if speed.checkpoint_hash in hashes:
            times[speed.bits] = min(speed.milliseconds, times.get(speed.bits, speed.milliseconds))
    pairs = ((time, detector.get_mean(bits, metric)) for bits, time in times.items())
    return tuple(sorted((x, y) for x, y in pairs if y is not None))


def _build_overview(detectors: Sequence[MeasuredDetector], task: str) -> Table:
    """The main metric of each detector by bit-width, and in brackets what it loses."""
    main, bit_widths = get_main(task), sort_bits(bits for each in detectors for bits in each.rows_by_bits)
    rows = [(escape_markup(each.name), *(_format_cell(each, bits, main) for bits in bit_widths)) for each in detectors]
    caption = f"{get_unit(main)} of {TASKS[task][0]}, mean over seeds; in brackets the difference to {FLOAT}."
    return Table(("detector", *bit_widths), tuple(rows), caption=caption)


def _format_cell(detector: MeasuredDetector, bits: str, metric: str) -> str:
    mean, loss = detector.get_mean(bits, metric), detector.get_loss(bits, metric)
    if mean is None:
        return _EMPTY
    if bits == FLOAT or loss is None or loss.mean is None:
        return f"{mean:.1f}"
    return f"{mean:.1f} ({round_to_tenth(-loss.mean):+.1f})"


def _build_details(detectors: Sequence[MeasuredDetector], task: str) -> Iterator[Table]:
    metrics = [f"{task}/{metric}" for metric in TASKS[task][1]]
    for each in detectors:
        costs = [cost for cost in (MB, GBOPS) if any(cost in row.metrics for row in each.rows)]
        rows = []
        for bits in each.rows_by_bits:
            loss = None if bits == FLOAT else each.get_loss(bits, metrics[0])
            cells = [_format(each.get(bits, metric)) for metric in metrics]
            cells.insert(1, _format(loss))
            rows.append((bits, *cells, *(_format(each.get(bits, cost), 3) for cost in costs)))
        names = list(map(get_unit, metrics))
        yield Table(("bits", names[0], "lost", *names[1:], *costs), tuple(rows), caption=escape_markup(each.name))


def _build_class_tables(detectors: Sequence[MeasuredDetector], task: str) -> Iterator[Table]:
    """For each detector the classes, those that lose most at the bit-width of its tile first."""
    for each in detectors:
        names = dict.fromkeys(name for row in each.rows for name in row.class_aps if name.startswith(f"{task}/"))
        bits, bit_widths = each.choose_headline(), tuple(each.rows_by_bits)
        losses = {name: _subtract(each.get_class_ap(FLOAT, name), each.get_class_ap(bits, name)) for name in names}
        rows = []
        for name in sorted(names, key=lambda name: -(losses[name] or 0.0)):
            aps = (each.get_class_ap(width, name) for width in bit_widths)
            cells = (_EMPTY if value is None else f"{value:.1f}" for value in (*aps, losses[name]))
            rows.append((escape_markup(name.partition("/")[2]), *cells))
        if rows:
            yield Table(("class", *bit_widths, f"lost at {bits}"), tuple(rows), caption=escape_markup(each.name))


def _subtract(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _format(measured: Measurement | None, decimals: int = 1) -> str:
    if measured is None:
        return _EMPTY
    text = format_metric(measured.mean, decimals)
    return text if measured.std is None or decimals != 1 else f"{text} ± {measured.std:.1f} ({measured.n})"


# ---- speed, settings -----------------------------------------------------------------------------------------------


def _build_speeds(speeds: Sequence[Speed]) -> Iterator[Block]:
    yield Heading("How fast it runs")
    for setting in dict.fromkeys(each.setting for each in speeds):
        shown = [each for each in speeds if each.setting == setting]
        rows = tuple(
            (
                escape_markup(each.checkpoint),
                each.runtime,
                each.bits,
                f"{each.milliseconds:.1f}",
                _EMPTY if each.file_mb is None else f"{each.file_mb:.2f}",
            )
            for each in shown
        )
        header = ("detector", "runtime", "bits", "ms for an image", "MB of the file")
        yield Table(header, rows, text_columns=3, caption=escape_markup(setting))


def _build_settings(rows: Sequence[Row], num_replaced: int, command: str) -> Iterator[Block]:
    notes = []
    if num_replaced:
        notes.append(f"{num_replaced} older rows of the same measurements were left out.")
    empty = sum(any(finite_or_none(value) is None for value in row.metrics.values()) for row in rows)
    if empty:
        notes.append(f"{empty} rows have a metric without a value, which no mean includes.")
    if notes:
        yield ItemList(tuple(notes))
    fields = ("method", "checkpoint", "config", "scheme", "scope", "calibration", "seed", "engine", "measured")
    lines = dict.fromkeys(
        tuple(escape_markup(text) or _EMPTY for text in _describe_row(row)) for row in sorted(rows, key=_sort_key)
    )
    blocks: list[Block] = [Table(fields, tuple(lines), text_columns=len(fields))] if lines else []
    versions = sorted({f"{name} {version}" for row in rows for name, version in row.versions.items()})
    blocks += [CodeBlock("\n".join(versions))] if versions else []
    if command:
        blocks += [Paragraph("This page was written by"), CodeBlock(command)]
    if blocks:
        yield Collapsible("Settings of each row", tuple(blocks))


def _sort_key(row: Row) -> tuple[str, ...]:
    return (row.dataset, row.method, row.config, row.scheme, str(row.seed))


def _describe_row(row: Row) -> tuple[str, ...]:
    what = row.config or format_protocol(row.protocol)
    texts = (row.method, os.path.basename(row.checkpoint), what, format_scheme(row), row.scope, str(row.calibration))
    return (*texts, str(row.seed), row.engine, row.time[:10])
