"""A line chart as SVG: named positions at equal steps, markers, error bars and a legend.

>>> chart = Chart("boxes", "Boxes", ("FP", "4w4a"), (Curve("SSQL", (48.8, 44.7), (0.2, 0.4)),), y_label="AP")
>>> render_svg(chart)[:60]
'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBo'
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from ssql_det.core.rows import finite_or_none
from ssql_det.report.blocks import Chart, Curve
from ssql_det.report.display_names import choose_styles
from ssql_det.report.markup import strip_markup, to_one_line
from ssql_det.report.svg_parts import (
    FONT_SIZE,
    LINE_HEIGHT,
    MARGIN,
    PLOT_HEIGHT,
    WIDTH,
    Scale,
    choose_ticks,
    estimate_max_width,
    format_ticks,
    make_svg,
    render_colour,
    render_grid,
    render_legend,
    render_marker,
    render_text,
    wrap_text,
)


class _Point(NamedTuple):
    x: int  # index of the x label
    value: float
    deviation: float  # 0 if there is none


def render_svg(chart: Chart, standalone: bool = False) -> str:
    """An SVG element for a page that has `CHART_CSS` and prints the title; if ``standalone``, a complete SVG file."""
    curves = [_make_points(curve, len(chart.x_labels)) for curve in chart.curves]
    points = [point for curve in curves for point in curve if point]
    bar_ends = [point.value + sign * point.deviation for point in points for sign in (-1, 1)]
    ticks = choose_ticks(min(bar_ends), max(bar_ends)) if bar_ends else ()

    title = wrap_text(strip_markup(chart.title), WIDTH - 2 * MARGIN, FONT_SIZE * 1.1) if standalone else []
    y_label = wrap_text(strip_markup(chart.y_label), WIDTH - 2 * MARGIN, FONT_SIZE)
    top = MARGIN + LINE_HEIGHT * (len(title) + len(y_label)) + 12
    bottom = top + (PLOT_HEIGHT if bar_ends else 3 * LINE_HEIGHT)
    left = MARGIN + estimate_max_width(format_ticks(ticks), FONT_SIZE) + 8
    step = (WIDTH - MARGIN - left) / max(1, len(chart.x_labels))
    x_scale = Scale(0, 1, left + step / 2, left + step * 3 / 2)  # of the index of an x label
    y_scale = Scale(ticks[0], ticks[-1], bottom, top) if ticks else Scale(0, 1, bottom, top)
    x_labels = [wrap_text(to_one_line(label), step, FONT_SIZE) for label in chart.x_labels]
    below_labels = bottom + 10 + LINE_HEIGHT * max(map(len, x_labels), default=0)
    names = [to_one_line(curve.name) for curve in chart.curves]
    styles = choose_styles(names)
    legend, height = render_legend(names, styles, below_labels + 12)
    middle = (left + WIDTH - MARGIN) / 2, (top + bottom) / 2
    elements = [
        render_text(title, MARGIN, MARGIN + 15, "title"),
        render_text(y_label, MARGIN, MARGIN + 15 + LINE_HEIGHT * len(title), "muted"),
        *render_grid(ticks, y_scale, left),
        *(
            render_text(label, x_scale.position(index), bottom + 24, "muted", "middle")
            for index, label in enumerate(x_labels)
        ),
        "" if bar_ends else render_text(["nothing measured"], *middle, "muted", "middle"),
        *(
            _render_curve(chart, name, points, style, x_scale, y_scale)
            for name, points, style in zip(names, curves, styles, strict=True)
        ),
        *legend,
    ]
    return make_svg(chart.title, _describe(chart, curves), elements, height, standalone)


def _make_points(curve: Curve, count: int) -> list[_Point | None]:
    deviations = curve.std or (None,) * count
    if not len(curve.values) == len(deviations) == count:
        raise ValueError(
            f"the curve {curve.name!r} does not have a value for each of the {count} x labels, or lacks some deviations"
        )
    finite = [finite_or_none(value) for value in curve.values]
    return [
        None if value is None else _Point(index, value, finite_or_none(deviation) or 0.0)
        for index, (value, deviation) in enumerate(zip(finite, deviations, strict=True))
    ]


def _describe(chart: Chart, curves: Sequence[Sequence[_Point | None]]) -> str:
    """The values in words, for screen readers."""
    x_labels = list(map(to_one_line, chart.x_labels))
    return "; ".join(
        f"{to_one_line(curve.name)}: "
        + ", ".join(f"{label} {_format_point(point)}" for label, point in zip(x_labels, points, strict=True))
        for curve, points in zip(chart.curves, curves, strict=True)
    )


def _format_point(point: _Point | None) -> str:
    if point is None:
        return "nothing"
    return f"{point.value:.6g}" + (f" ± {point.deviation:.3g}" if point.deviation else "")


def _render_curve(
    chart: Chart, name: str, points: Sequence[_Point | None], style: int, x_scale: Scale, y_scale: Scale
) -> str:
    """One curve; it is interrupted where a value is missing, and around separate positions."""
    parts = []
    for run in _split_runs(points, {chart.x_labels.index(label) for label in chart.separate}):
        positions = [(x_scale.position(point.x), y_scale.position(point.value)) for point in run]
        if len(run) > 1:
            parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in positions)}"/>')
        for (x, y), point in zip(positions, run, strict=True):
            low, high = (y_scale.position(point.value + sign * point.deviation) for sign in (-1, 1))
            if point.deviation:
                parts.append(f'<path class="deviation" d="M{x - 4:.1f} {high:.1f}h8m-4 0V{low:.1f}m-4 0h8"/>')
            value = f"{name}, {to_one_line(chart.x_labels[point.x])}: {_format_point(point)}"
            parts.append(render_marker(style, x, y, value))
    return f'<g style="{render_colour(style)}">{"".join(parts)}</g>'


def _split_runs(points: Sequence[_Point | None], separate: Collection[int]) -> Iterator[list[_Point]]:
    """The points that a line joins."""
    run: list[_Point] = []
    for index, point in enumerate(points):
        if run and (point is None or index in separate or run[-1].x in separate):
            yield run
            run = []
        if point is not None:
            run.append(point)
    if run:
        yield run
