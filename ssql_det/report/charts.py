"""A line chart as SVG: named positions at equal steps, markers, error bars and a legend.

Rendered without matplotlib, which is no run-time dependency of the package. A chart is a few kB of SVG; its text can be
searched and read aloud, is larger on small screens, and follows the reader's light or dark theme.

>>> chart = Chart("boxes", "Boxes", ("FP", "4w4a"), (Curve("SSQL", (48.8, 44.7), (0.2, 0.4)),), y_label="AP")
>>> render_svg(chart)[:60]
'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBo'
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import NamedTuple

from ssql_det.core.rows import finite_or_none
from ssql_det.report.blocks import Chart, Curve
from ssql_det.report.markup import strip_markup, to_one_line
from ssql_det.report.stylesheet import CHART_CSS, NUM_CURVE_COLOURS, make_theme_css

_WIDTH, _MARGIN, _PLOT_HEIGHT = 440.0, 6.0, 210.0  # in the user units of the SVG, as all lengths below
_FONT_SIZE, _LINE_HEIGHT = 16.0, 21.0  # on small screens, where they are largest
_SAMPLE_WIDTH = 36.0  # of the piece of curve before each name in the legend
_MARKERS = (  # SVG paths; 7 markers and 9 colours have no common factor, so 63 curves differ
    *("M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z", "M-4.5-4.5H4.5V4.5H-4.5Z", "M0-6.4L6.4 0L0 6.4L-6.4 0Z"),
    *("M0-5.8L5.8 4.4H-5.8Z", "M0 5.8L5.8-4.4H-5.8Z"),
    "M-2-5.8H2V-2H5.8V2H2V5.8H-2V2H-5.8V-2H-2Z",
    "M0-6.8L2-2.2L6.6-2.2L3 .9L4.2 5.6L0 3L-4.2 5.6L-3 .9L-6.6-2.2L-2-2.2Z",
)
_MAX_TICKS = 6
_NARROW_LETTERS = frozenset(" .,:;!|'()[]ijlftrI")
_WIDE_LETTERS = frozenset("mwMW@%—…#&+<=>^~±")


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

    title = wrap_text(strip_markup(chart.title), _WIDTH - 2 * _MARGIN, _FONT_SIZE * 1.1) if standalone else []
    y_label = wrap_text(strip_markup(chart.y_label), _WIDTH - 2 * _MARGIN, _FONT_SIZE)
    top = _MARGIN + _LINE_HEIGHT * (len(title) + len(y_label)) + 12
    bottom = top + (_PLOT_HEIGHT if bar_ends else 3 * _LINE_HEIGHT)
    left = _MARGIN + estimate_max_width(format_ticks(ticks), _FONT_SIZE) + 8
    step = (_WIDTH - _MARGIN - left) / max(1, len(chart.x_labels))
    x_scale = Scale(0, 1, left + step / 2, left + step * 3 / 2)  # of the index of an x label
    y_scale = Scale(ticks[0], ticks[-1], bottom, top) if ticks else Scale(0, 1, bottom, top)
    x_labels = [wrap_text(to_one_line(label), step, _FONT_SIZE) for label in chart.x_labels]
    below_labels = bottom + 10 + _LINE_HEIGHT * max(map(len, x_labels), default=0)
    legend, height = _render_legend([to_one_line(curve.name) for curve in chart.curves], below_labels + 12)
    middle = (left + _WIDTH - _MARGIN) / 2, (top + bottom) / 2
    elements = [
        _render_text(title, _MARGIN, _MARGIN + 15, "title"),
        _render_text(y_label, _MARGIN, _MARGIN + 15 + _LINE_HEIGHT * len(title), "muted"),
        *_render_grid(ticks, y_scale, left),
        *(
            _render_text(label, x_scale.position(index), bottom + 24, "muted", "middle")
            for index, label in enumerate(x_labels)
        ),
        "" if bar_ends else _render_text(["nothing measured"], *middle, "muted", "middle"),
        *(_render_curve(points, curve_index, x_scale, y_scale) for curve_index, points in enumerate(curves)),
        *legend,
    ]
    size = f' width="600" height="{600 / _WIDTH * height:.0f}"' if standalone else ""
    description = escape(_describe(chart, curves))
    background = '<rect width="100%" height="100%" fill="var(--background)"/>'
    style = f"<style>{make_theme_css(':root')}{CHART_CSS}</style>{background}" if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {_WIDTH:g} {height:g}"{size} role="img">'
        f"<title>{escape(strip_markup(chart.title))}</title><desc>{description}</desc>{style}{''.join(elements)}</svg>"
    )


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

    def format_point(point: _Point | None) -> str:
        if point is None:
            return "nothing"
        return f"{point.value:.6g}" + (f" ± {point.deviation:.3g}" if point.deviation else "")

    x_labels = list(map(to_one_line, chart.x_labels))
    return "; ".join(
        f"{to_one_line(curve.name)}: "
        + ", ".join(f"{label} {format_point(point)}" for label, point in zip(x_labels, points, strict=True))
        for curve, points in zip(chart.curves, curves, strict=True)
    )


def _render_grid(ticks: Sequence[float], y_scale: Scale, left: float) -> Iterator[str]:
    for tick, label in zip(ticks, format_ticks(ticks), strict=True):
        y = y_scale.position(tick)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{_WIDTH - _MARGIN:.1f}"/>'
        yield _render_text([label], left - 8, y + 5, "muted", "end")


def _render_curve(points: Sequence[_Point | None], curve_index: int, x_scale: Scale, y_scale: Scale) -> str:
    """One curve; it is interrupted where a value is missing."""
    runs = [[point for point in run if point] for _, run in groupby(points, key=bool)]
    parts = []
    for run in runs:
        positions = [(x_scale.position(point.x), y_scale.position(point.value)) for point in run]
        if len(run) > 1:
            parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in positions)}"/>')
        for (x, y), point in zip(positions, run, strict=True):
            low, high = (y_scale.position(point.value + sign * point.deviation) for sign in (-1, 1))
            if point.deviation:
                parts.append(f'<path class="deviation" d="M{x - 4:.1f} {high:.1f}h8m-4 0V{low:.1f}m-4 0h8"/>')
            parts.append(_render_marker(curve_index, x, y))
    return f'<g style="color:var(--curve-{curve_index % NUM_CURVE_COLOURS})">{"".join(parts)}</g>'


def _render_marker(curve_index: int, x: float, y: float) -> str:
    path = _MARKERS[curve_index % len(_MARKERS)]
    return f'<path class="marker" transform="translate({x:.1f} {y:.1f})" d="{path}"/>'


def _render_legend(names: Sequence[str], top: float) -> tuple[list[str], float]:
    """The legend's elements, in as many columns of equal width as fit, and the y where the legend ends."""
    wrapped_names = [wrap_text(name, _WIDTH - 2 * _MARGIN - _SAMPLE_WIDTH, _FONT_SIZE) for name in names]
    lines = (line for wrapped_name in wrapped_names for line in wrapped_name)
    column_width = _SAMPLE_WIDTH + estimate_max_width(lines, _FONT_SIZE) + 12
    columns = max(1, int((_WIDTH - 2 * _MARGIN + 12) // column_width))
    parts = []
    for first in range(0, len(names), columns):
        row = wrapped_names[first : first + columns]
        for column, wrapped_name in enumerate(row):
            x, curve_index = _MARGIN + column * column_width, first + column
            colour = f"color:var(--curve-{curve_index % NUM_CURVE_COLOURS})"
            parts += [
                f'<g style="{colour}"><path class="line" d="M{x:.1f} {top + 10:.1f}h26"/>',
                f"{_render_marker(curve_index, x + 13, top + 10)}</g>",
                _render_text(wrapped_name, x + _SAMPLE_WIDTH, top + 15),
            ]
        top += _LINE_HEIGHT * max(map(len, row))
    return parts, top + _MARGIN


def _render_text(lines: Sequence[str], x: float, y: float, css_class: str = "", anchor: str = "") -> str:
    """Lines below one another; ``y`` is the baseline of the first."""
    attributes = (f' class="{css_class}"' if css_class else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return "".join(
        f'<text x="{x:.1f}" y="{y + _LINE_HEIGHT * index:.1f}"{attributes}>{escape(line)}</text>'
        for index, line in enumerate(lines)
        if line
    )


@dataclass(frozen=True)
class Scale:
    """Maps values to positions on an axis: ``low`` to ``start``, ``high`` to ``end``.

    >>> Scale(10, 20, start=100, end=0).position(15)
    50.0
    """

    low: float
    high: float
    start: float
    end: float

    def position(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def choose_ticks(low: float, high: float) -> tuple[float, ...]:
    """Four to six round ticks, 1, 2, 2.5 or 5 times a power of ten apart; if ``low`` is ``high``, centred on it.

    >>> choose_ticks(41.2, 48.8)
    (40.0, 42.0, 44.0, 46.0, 48.0, 50.0)
    """
    magnitude = max(abs(low), abs(high))
    if high - low <= 1e-9 * magnitude:
        margin = magnitude / 10 or 1.0
        low, high = low - margin, high + margin
    power = math.floor(math.log10((high - low) / _MAX_TICKS))
    for step in (factor * 10.0**exponent for exponent in (power, power + 1) for factor in (1.0, 2.0, 2.5, 5.0)):
        first, last = math.floor(low / step), math.ceil(high / step)
        if (
            last - first < _MAX_TICKS
        ):  # so 6 ticks at most; 4 at least, as the previous step, half of this or more, needed 7
            return tuple(round(count * step, 12 - power) for count in range(first, last + 1))
    raise AssertionError(f"no tick step fits the range from {low} to {high}")


def format_ticks(ticks: Sequence[float]) -> tuple[str, ...]:
    """The ticks as texts, all with as many decimals as the most precise tick needs.

    >>> format_ticks((0.0, 2.5, 5.0))
    ('0.0', '2.5', '5.0')
    """
    if not ticks:
        return ()
    if max(map(abs, ticks)) >= 1e6 or ticks[1] - ticks[0] < 1e-4:
        return tuple(f"{tick:.10g}" for tick in ticks)
    digits = max(len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return tuple(f"{tick:.{digits}f}" for tick in ticks)


def estimate_width(text: str, font_size: float) -> float:
    """An upper estimate of a text's width, since the reader's font is unknown."""
    return font_size * sum(map(_letter_width, text))


def estimate_max_width(texts: Iterable[str], font_size: float) -> float:
    return max((estimate_width(text, font_size) for text in texts), default=0.0)


def wrap_text(text: str, width: float, font_size: float) -> list[str]:
    """Break a text into lines of at most ``width``: between words, and within a word that is too long for a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if estimate_width(joined, font_size) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and estimate_width(lines[-1] + letter, font_size) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _letter_width(letter: str) -> float:
    """An upper estimate, as a fraction of the font size."""
    if letter in _WIDE_LETTERS or unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.45 if letter in _NARROW_LETTERS else 0.8 if letter.isupper() else 0.65
