"""What charts are drawn with, as SVG: axes, ticks, markers, a legend, wrapped text.

Rendered without matplotlib, which is no run-time dependency of the package. A chart is a few kB of SVG; its text can be
searched and read aloud, is larger on small screens, and follows the reader's light or dark theme.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ssql_det.report.markup import strip_markup
from ssql_det.report.stylesheet import CHART_CSS, NUM_CURVE_COLOURS, make_theme_css

WIDTH, MARGIN, PLOT_HEIGHT = 440.0, 6.0, 210.0  # in the user units of the SVG, as all lengths below
FONT_SIZE, LINE_HEIGHT = 16.0, 21.0  # on small screens, where they are largest
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


def make_svg(title: str, description: str, elements: Iterable[str], height: float, standalone: bool) -> str:
    """An SVG element for a page that has `CHART_CSS` and prints the title; if ``standalone``, a complete SVG file."""
    size = f' width="600" height="{600 / WIDTH * height:.0f}"' if standalone else ""
    background = '<rect width="100%" height="100%" fill="var(--background)"/>'
    style = f"<style>{make_theme_css(':root')}{CHART_CSS}</style>{background}" if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH:g} {height:g}"{size} role="img">'
        f"<title>{escape(strip_markup(title))}</title><desc>{escape(description)}</desc>{style}{''.join(elements)}</svg>"
    )


def render_grid(ticks: Sequence[float], y_scale: Scale, left: float) -> Iterator[str]:
    for tick, label in zip(ticks, format_ticks(ticks), strict=True):
        y = y_scale.position(tick)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{WIDTH - MARGIN:.1f}"/>'
        yield render_text([label], left - 8, y + 5, "muted", "end")


def render_marker(style: int, x: float, y: float, value: str = "") -> str:
    """``style`` is one of ``choose_styles``; ``value`` is shown while the pointer is on the marker."""
    path = _MARKERS[style % len(_MARKERS)]
    tag = f'<path class="marker" transform="translate({x:.1f} {y:.1f})" d="{path}"'
    return f"{tag}><title>{escape(value)}</title></path>" if value else f"{tag}/>"


def render_colour(style: int) -> str:
    return f"color:var(--curve-{style % NUM_CURVE_COLOURS})"


def render_legend(names: Sequence[str], styles: Sequence[int], top: float) -> tuple[list[str], float]:
    """The legend's elements, in as many columns of equal width as fit, and the y where the legend ends."""
    wrapped_names = [wrap_text(name, WIDTH - 2 * MARGIN - _SAMPLE_WIDTH, FONT_SIZE) for name in names]
    lines = (line for wrapped_name in wrapped_names for line in wrapped_name)
    column_width = _SAMPLE_WIDTH + estimate_max_width(lines, FONT_SIZE) + 12
    columns = max(1, int((WIDTH - 2 * MARGIN + 12) // column_width))
    parts = []
    for first in range(0, len(names), columns):
        row = wrapped_names[first : first + columns]
        for column, wrapped_name in enumerate(row):
            x, style = MARGIN + column * column_width, styles[first + column]
            parts += [
                f'<g style="{render_colour(style)}"><path class="line" d="M{x:.1f} {top + 10:.1f}h26"/>',
                f"{render_marker(style, x + 13, top + 10)}</g>",
                render_text(wrapped_name, x + _SAMPLE_WIDTH, top + 15),
            ]
        top += LINE_HEIGHT * max(map(len, row))
    return parts, top + MARGIN


def render_text(lines: Sequence[str], x: float, y: float, css_class: str = "", anchor: str = "") -> str:
    """Lines below one another; ``y`` is the baseline of the first."""
    attributes = (f' class="{css_class}"' if css_class else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return "".join(
        f'<text x="{x:.1f}" y="{y + LINE_HEIGHT * index:.1f}"{attributes}>{escape(line)}</text>'
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


def choose_log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Round ticks from ``low`` to ``high`` or a little beyond, for an axis of logarithms.

    >>> choose_log_ticks(0.16, 2.3)
    (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    >>> choose_log_ticks(3.0, 40000.0)
    (1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0)
    """
    if low == high:
        low, high = low / 2, high * 2
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    for factors, step in itertools.chain([((1.0, 2.0, 5.0), 1)], zip(itertools.repeat((1.0,)), itertools.count(1))):
        ticks = [factor * 10.0**exponent for exponent in range(first, last + step, step) for factor in factors]
        inner = (tick for tick in ticks if low < tick < high)
        chosen = (max(tick for tick in ticks if tick <= low), *inner, min(tick for tick in ticks if tick >= high))
        if len(chosen) <= _MAX_TICKS:
            break
    return chosen


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
