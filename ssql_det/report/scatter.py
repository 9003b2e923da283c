"""A scatter chart as SVG: points with numbers on both axes, some joined by a line, and a legend.

>>> chart = Scatter("pareto", "AP over size", (Series("uniform", ((0.3, 33.0), (0.4, 38.0)), True),), "MB", "AP")
>>> render_scatter(chart)[:60]
'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBo'
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from ssql_det.report.blocks import Scatter, Series
from ssql_det.report.markup import strip_markup, to_one_line
from ssql_det.report.stylesheet import NUM_CURVE_COLOURS
from ssql_det.report.svg_parts import (
    FONT_SIZE,
    LINE_HEIGHT,
    MARGIN,
    PLOT_HEIGHT,
    WIDTH,
    Scale,
    choose_ticks,
    estimate_max_width,
    estimate_width,
    format_ticks,
    make_svg,
    render_grid,
    render_legend,
    render_marker,
    render_text,
    wrap_text,
)


def render_scatter(chart: Scatter, standalone: bool = False) -> str:
    """An SVG element for a page that has `CHART_CSS` and prints the title; if ``standalone``, a complete SVG file."""
    points = [point for series in chart.series for point in _list_finite(series)]
    x_ticks, y_ticks = (choose_ticks(min(axis), max(axis)) if axis else () for axis in map(list, _split(points)))
    title = wrap_text(strip_markup(chart.title), WIDTH - 2 * MARGIN, FONT_SIZE * 1.1) if standalone else []
    y_label, x_label = (
        wrap_text(strip_markup(label), WIDTH - 2 * MARGIN, FONT_SIZE) for label in (chart.y_label, chart.x_label)
    )
    top = MARGIN + LINE_HEIGHT * (len(title) + len(y_label)) + 12
    bottom = top + (PLOT_HEIGHT if points else 3 * LINE_HEIGHT)
    x_texts = format_ticks(x_ticks)
    left = MARGIN + estimate_max_width(format_ticks(y_ticks), FONT_SIZE) + 8
    right = WIDTH - MARGIN - estimate_width(x_texts[-1], FONT_SIZE) / 2 if x_texts else WIDTH - MARGIN
    start = left + estimate_width(x_texts[0], FONT_SIZE) / 2 if x_texts else left
    x_scale = Scale(x_ticks[0], x_ticks[-1], start, right) if x_ticks else Scale(0, 1, left, right)
    y_scale = Scale(y_ticks[0], y_ticks[-1], bottom, top) if y_ticks else Scale(0, 1, bottom, top)
    below_ticks = bottom + 24 + LINE_HEIGHT
    legend_top = bottom + 10 + LINE_HEIGHT * (1 + len(x_label)) + 12
    legend, height = render_legend([to_one_line(series.name) for series in chart.series], legend_top)
    middle = (left + WIDTH - MARGIN) / 2
    elements = [
        render_text(title, MARGIN, MARGIN + 15, "title"),
        render_text(y_label, MARGIN, MARGIN + 15 + LINE_HEIGHT * len(title), "muted"),
        *render_grid(y_ticks, y_scale, left),
        *(
            render_text([text], x_scale.position(tick), bottom + 24, "muted", "middle")
            for tick, text in zip(x_ticks, x_texts, strict=True)
        ),
        render_text(x_label, middle, below_ticks, "muted", "middle"),
        "" if points else render_text(["nothing measured"], middle, (top + bottom) / 2, "muted", "middle"),
        *(_render_series(series, index, x_scale, y_scale) for index, series in enumerate(chart.series)),
        *legend,
    ]
    return make_svg(chart.title, _describe(chart), elements, height, standalone)


def _list_finite(series: Series) -> Iterator[tuple[float, float]]:
    return ((x, y) for x, y in series.points if isfinite(x) and isfinite(y))


def _split(points: list[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(x for x, _ in points), tuple(y for _, y in points)


def _describe(chart: Scatter) -> str:
    """The points in words, for screen readers."""
    return "; ".join(
        f"{to_one_line(series.name)}: " + ", ".join(f"{y:.6g} at {x:.6g}" for x, y in _list_finite(series))
        for series in chart.series
    )


def _render_series(series: Series, index: int, x_scale: Scale, y_scale: Scale) -> str:
    positions = [(x_scale.position(x), y_scale.position(y)) for x, y in _list_finite(series)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
    line = f'<polyline class="line" points="{corners}"/>' if series.is_line and len(positions) > 1 else ""
    markers = "".join(render_marker(index, x, y) for x, y in positions)
    return f'<g style="color:var(--curve-{index % NUM_CURVE_COLOURS})">{line}{markers}</g>'
