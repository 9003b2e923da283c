"""A chart as SVG: lines over named places at equal steps, with markers, deviations and a legend.

Each curve has a colour and a shape, and is broken where nothing was measured. In a small picture the letters grow; the
room that is left for them is that of the large ones.

>>> chart = Chart("boxes", "Boxes", ("FP", "4w4a"), (Curve("SSQL", (48.8, 44.7), (0.2, 0.4)),), unit="AP")
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
from ssql_det.report.document import Chart, Curve
from ssql_det.report.markup import strip_markup, to_one_line
from ssql_det.report.stylesheet import CHART_CSS, NUM_CURVE_COLOURS, theme_css

_WIDTH, _EDGE, _PLOT = 440.0, 6.0, 210.0
_LETTER, _LINE = 16.0, 21.0  # of the large letters
_SAMPLE = 36.0  # of a line, before its name in the legend
_SHAPES = (  # not as many as colours: so the two together tell 63 curves apart
    *("M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z", "M-4.5-4.5H4.5V4.5H-4.5Z", "M0-6.4L6.4 0L0 6.4L-6.4 0Z"),
    *("M0-5.8L5.8 4.4H-5.8Z", "M0 5.8L5.8-4.4H-5.8Z"),
    "M-2-5.8H2V-2H5.8V2H2V5.8H-2V2H-5.8V-2H-2Z",
    "M0-6.8L2-2.2L6.6-2.2L3 .9L4.2 5.6L0 3L-4.2 5.6L-3 .9L-6.6-2.2L-2-2.2Z",
)
_MOST_TICKS = 6
_NARROW = frozenset(" .,:;!|'()[]ijlftrI")
_BROAD = frozenset("mwMW@%—…#&+<=>^~±")


class _Point(NamedTuple):
    place: int
    value: float
    spread: float


def render_svg(chart: Chart, standalone: bool = False) -> str:
    """A part of a page that has `CHART_CSS` and the colours and tells the title; or, ``standalone``, a whole file."""
    curves = [_points(curve, len(chart.places)) for curve in chart.curves]
    ends = [point.value + sign * point.spread for points in curves for point in points if point for sign in (-1, 1)]
    ticks = choose_ticks(min(ends), max(ends)) if ends else ()

    title = wrap_text(strip_markup(chart.title), _WIDTH - 2 * _EDGE, _LETTER * 1.1) if standalone else []
    unit = wrap_text(strip_markup(chart.unit), _WIDTH - 2 * _EDGE, _LETTER)
    top = _EDGE + _LINE * (len(title) + len(unit)) + 12
    bottom = top + (_PLOT if ends else 3 * _LINE)
    left = _EDGE + max_text_width(format_ticks(ticks), _LETTER) + 8
    step = (_WIDTH - _EDGE - left) / max(1, len(chart.places))
    across = Scale(0, 1, left + step / 2, left + step * 3 / 2)
    up = Scale(ticks[0], ticks[-1], bottom, top) if ticks else Scale(0, 1, bottom, top)
    places = [wrap_text(to_one_line(place), step, _LETTER) for place in chart.places]
    below = bottom + 10 + _LINE * max(map(len, places), default=0)
    legend, height = _legend([to_one_line(curve.name) for curve in chart.curves], below + 12)
    drawn = [
        _text(title, _EDGE, _EDGE + 15, "title"),
        _text(unit, _EDGE, _EDGE + 15 + _LINE * len(title), "quiet"),
        *_grid(ticks, up, left),
        *(_text(place, across.place(number), bottom + 24, "quiet", "middle") for number, place in enumerate(places)),
        "" if ends else _text(["nothing measured"], (left + _WIDTH - _EDGE) / 2, (top + bottom) / 2, "quiet", "middle"),
        *(_curve(points, number, across, up) for number, points in enumerate(curves)),
        *legend,
    ]
    size = f' width="600" height="{600 / _WIDTH * height:.0f}"' if standalone else ""
    told = f"<title>{escape(strip_markup(chart.title))}</title><desc>{escape(_told(chart, curves))}</desc>"
    look = f'<style>{theme_css(":root")}{CHART_CSS}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {_WIDTH:g} {height:g}"{size} role="img">'
        f"{told}{look if standalone else ''}{''.join(drawn)}</svg>"
    )


def _points(curve: Curve, places: int) -> list[_Point | None]:
    spread = curve.spread or (None,) * places
    if not len(curve.values) == len(spread) == places:
        raise ValueError(f"the curve {curve.name!r} has not one value, and one deviation or none, for each place")
    finite = [finite_or_none(value) for value in curve.values]
    return [
        None if value is None else _Point(place, value, finite_or_none(deviation) or 0.0)
        for place, (value, deviation) in enumerate(zip(finite, spread, strict=True))
    ]


def _told(chart: Chart, curves: Sequence[Sequence[_Point | None]]) -> str:
    """The figures in words, for who does not see the lines."""

    def figure(point: _Point | None) -> str:
        if point is None:
            return "nothing"
        return f"{point.value:.6g}" + (f" ± {point.spread:.3g}" if point.spread else "")

    return "; ".join(
        f"{to_one_line(curve.name)}: "
        + ", ".join(f"{to_one_line(place)} {figure(point)}" for place, point in zip(chart.places, points, strict=True))
        for curve, points in zip(chart.curves, curves, strict=True)
    )


def _grid(ticks: Sequence[float], up: Scale, left: float) -> Iterator[str]:
    for tick, label in zip(ticks, format_ticks(ticks), strict=True):
        y = up.place(tick)
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{_WIDTH - _EDGE:.1f}"/>'
        yield _text([label], left - 8, y + 5, "quiet", "end")


def _curve(points: Sequence[_Point | None], number: int, across: Scale, up: Scale) -> str:
    runs = [[point for point in run if point] for _, run in groupby(points, key=bool)]
    parts = []
    for run in runs:
        places = [(across.place(point.place), up.place(point.value)) for point in run]
        if len(run) > 1:
            parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        for (x, y), point in zip(places, run, strict=True):
            low, high = (up.place(point.value + sign * point.spread) for sign in (-1, 1))
            if point.spread:
                parts.append(f'<path class="spread" d="M{x - 4:.1f} {high:.1f}h8m-4 0V{low:.1f}m-4 0h8"/>')
            parts.append(_mark(number, x, y))
    return f'<g style="color:var(--curve-{number % NUM_CURVE_COLOURS})">{"".join(parts)}</g>'


def _mark(number: int, x: float, y: float) -> str:
    return f'<path class="mark" transform="translate({x:.1f} {y:.1f})" d="{_SHAPES[number % len(_SHAPES)]}"/>'


def _legend(names: Sequence[str], top: float) -> tuple[list[str], float]:
    """In columns of one width, as many as there is room for; and where it ends."""
    lines = [wrap_text(name, _WIDTH - 2 * _EDGE - _SAMPLE, _LETTER) for name in names]
    column = _SAMPLE + max_text_width((line for name in lines for line in name), _LETTER) + 12
    columns = max(1, int((_WIDTH - 2 * _EDGE + 12) // column))
    parts = []
    for first in range(0, len(names), columns):
        of_row = lines[first : first + columns]
        for place, name in enumerate(of_row):
            x, number = _EDGE + place * column, first + place
            parts += [
                f'<g style="color:var(--curve-{number % NUM_CURVE_COLOURS})"><path class="line" d="M{x:.1f} {top + 10:.1f}h26"/>',
                f"{_mark(number, x + 13, top + 10)}</g>{_text(name, x + _SAMPLE, top + 15)}",
            ]
        top += _LINE * max(map(len, of_row))
    return parts, top + _EDGE


def _text(lines: Sequence[str], x: float, y: float, kind: str = "", anchor: str = "") -> str:
    """One line below the other. ``y`` is where the first one stands."""
    named = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return "".join(
        f'<text x="{x:.1f}" y="{y + _LINE * number:.1f}"{named}>{escape(line)}</text>'
        for number, line in enumerate(lines)
        if line
    )


@dataclass(frozen=True)
class Scale:
    """From values to places on an axis: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def choose_ticks(low: float, high: float) -> tuple[float, ...]:
    """Four to six, a step of 1, 2, 2.5 or 5 times a power of ten apart. Equal values lie in the middle of theirs."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:
        room = size / 10 or 1.0
        low, high = low - room, high + room
    power = math.floor(math.log10((high - low) / _MOST_TICKS))
    for step in (times * 10.0 ** (power + more) for more in (0, 1) for times in (1.0, 2.0, 2.5, 5.0)):
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first < _MOST_TICKS:  # and at least 3: the step before, at least half of this, took 6 or more
            return tuple(round(count * step, 12 - power) for count in range(first, last + 1))
    raise AssertionError(f"no step from {low} to {high}")


def format_ticks(ticks: Sequence[float]) -> tuple[str, ...]:
    """All with the digits that the finest of them needs."""
    if not ticks:
        return ()
    if max(map(abs, ticks)) >= 1e6 or ticks[1] - ticks[0] < 1e-4:
        return tuple(f"{tick:.10g}" for tick in ticks)
    digits = max(len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return tuple(f"{tick + 0.0:.{digits}f}" for tick in ticks)


def text_width(text: str, size: float) -> float:
    """Of a text in a font of that size, guessed without one: rather too much than too little."""
    return size * sum(map(_share, text))


def max_text_width(texts: Iterable[str], size: float) -> float:
    return max((text_width(text, size) for text in texts), default=0.0)


def wrap_text(text: str, room: float, size: float) -> list[str]:
    """Lines that fit: broken between words, and within those that are too long for a line of their own."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, size) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, size) > room:
                lines.append("")
            lines[-1] += letter
    return lines


def _share(letter: str) -> float:
    if letter in _BROAD or unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.45 if letter in _NARROW else 0.8 if letter.isupper() else 0.65
