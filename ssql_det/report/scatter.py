"""A scatter chart as SVG: points with numbers on both axes, some joined by a line, and a legend.

>>> chart = Scatter("pareto", "AP over size", (Series("uniform", ((0.3, 33.0), (0.4, 38.0)), True),), "MB", "AP")
>>> render_scatter(chart)[:60]
'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBo'
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssql_det.report.blocks import Scatter, Series
from ssql_det.report.display_names import choose_styles
from ssql_det.report.markup import strip_markup, to_one_line
from ssql_det.report.svg_parts import (
    FONT_SIZE,
    LINE_HEIGHT,
    MARGIN,
    PLOT_HEIGHT,
    WIDTH,
    Scale,
    choose_log_ticks,
    choose_ticks,
    estimate_max_width,
    estimate_width,
    format_ticks,
    make_svg,
    render_colour,
    render_grid,
    render_legend,
    render_marker,
    render_text,
    wrap_text,
)


def render_scatter(chart: Scatter, standalone: bool = False) -> str:
    """An SVG element for a page that has `CHART_CSS` and prints the title; if ``standalone``, a complete SVG file."""
    points = [point for series in chart.series for point in _list_drawn(chart, series)]
    choose_x_ticks = choose_log_ticks if chart.is_log_x else choose_ticks
    x_ticks = choose_x_ticks(min(x for x, _ in points), max(x for x, _ in points)) if points else ()
    y_ticks = choose_ticks(min(y for _, y in points), max(y for _, y in points)) if points else ()
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
    measure = math.log10 if chart.is_log_x else float
    x_scale = Scale(measure(x_ticks[0]), measure(x_ticks[-1]), start, right) if x_ticks else Scale(0, 1, left, right)
    y_scale = Scale(y_ticks[0], y_ticks[-1], bottom, top) if y_ticks else Scale(0, 1, bottom, top)
    below_ticks = bottom + 24 + LINE_HEIGHT
    legend_top = bottom + 10 + LINE_HEIGHT * (1 + len(x_label)) + 12
    names = [to_one_line(series.name) for series in chart.series]
    styles = choose_styles(names)
    legend, height = render_legend(names, styles, legend_top)
    middle = (left + WIDTH - MARGIN) / 2
    elements = [
        render_text(title, MARGIN, MARGIN + 15, "title"),
        render_text(y_label, MARGIN, MARGIN + 15 + LINE_HEIGHT * len(title), "muted"),
        *render_grid(y_ticks, y_scale, left),
        *(
            render_text([text], x_scale.position(measure(tick)), bottom + 24, "muted", "middle")
            for tick, text in zip(x_ticks, x_texts, strict=True)
        ),
        render_text(x_label, middle, below_ticks, "muted", "middle"),
        "" if points else render_text(["nothing measured"], middle, (top + bottom) / 2, "muted", "middle"),
        *(
            _render_series(chart, series, style, x_scale, y_scale)
            for series, style in zip(chart.series, styles, strict=True)
        ),
        *legend,
    ]
    return make_svg(chart.title, _describe(chart), elements, height, standalone)


def _list_drawn(chart: Scatter, series: Series) -> Iterator[tuple[float, float]]:
    return ((x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not chart.is_log_x))


def _describe(chart: Scatter) -> str:
    """The points in words, for screen readers."""
    return "; ".join(
        f"{to_one_line(series.name)}: " + ", ".join(f"{y:.6g} at {x:.6g}" for x, y in _list_drawn(chart, series))
        for series in chart.series
    )


def _render_series(chart: Scatter, series: Series, style: int, x_scale: Scale, y_scale: Scale) -> str:
    measure = math.log10 if chart.is_log_x else float
    name, points = to_one_line(series.name), [*_list_drawn(chart, series)]
    positions = [(x_scale.position(measure(x)), y_scale.position(y)) for x, y in points]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
    line = f'<polyline class="line" points="{corners}"/>' if series.is_line and len(positions) > 1 else ""
    markers = "".join(
        render_marker(style, *position, f"{name}: {y:.6g} at {x:.6g}")
        for position, (x, y) in zip(positions, points, strict=True)
    )
    return f'<g style="{render_colour(style)}">{line}{markers}</g>'
