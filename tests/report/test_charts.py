"""Charts as SVG, parsed again."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.font_manager import findfont
from PIL import ImageFont
from support.report.pages import CHART, HOSTILE, WIDTHS

from ssql_det.report.blocks import Chart, Curve
from ssql_det.report.charts import render_svg
from ssql_det.report.svg_parts import Scale, choose_ticks, estimate_width, format_ticks, wrap_text

SVG = "{http://www.w3.org/2000/svg}"
FINITE = st.floats(-1e300, 1e300).filter(lambda value: value == 0 or abs(value) > 1e-200)


def draw_chart(*curves, x_labels=WIDTHS, standalone=False, **fields):
    return ElementTree.fromstring(render_svg(Chart("c", "Title", x_labels, curves, **fields), standalone))


def list_lines(svg):
    """The points of each polyline."""
    polylines = svg.iter(f"{SVG}polyline")
    return [[tuple(map(float, point.split(","))) for point in each.get("points").split()] for each in polylines]


def list_markers(svg):
    paths = svg.findall(f"{SVG}g")[0].findall(f"{SVG}path[@class='marker']")
    return [tuple(map(float, re.findall(r"[\d.-]+", each.get("transform")))) for each in paths]


def list_texts(svg):
    return {each.text: (float(each.get("x")), float(each.get("y"))) for each in svg.iter(f"{SVG}text")}


def test_points_are_at_their_values_on_the_axes():
    values = (0.0, 40.0, 10.0, 30.0, 20.0)
    svg = draw_chart(Curve("a", values))
    ((*points,),) = list_lines(svg)
    ticks = list_texts(svg)
    for (x, y), value, bits in zip(points, values, WIDTHS, strict=True):
        assert y == pytest.approx(ticks["0"][1] + value / 40 * (ticks["40"][1] - ticks["0"][1]) - 5, abs=0.11)
        assert x == pytest.approx(ticks[bits][0], abs=0.01)
    steps = [right[0] - left[0] for left, right in itertools.pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.11)
    assert list_markers(svg) == points


def test_separate_positions_are_not_joined_and_markers_have_their_values():
    curve = Curve("a <b>", (4.0, 3.0, 2.5, 2.0, 1.0), (None, 0.5, None, None, None))
    svg = draw_chart(curve, separate=("6w6a", "4w4a"))
    assert [len(line) for line in list_lines(svg)] == [2]
    assert len(list_markers(svg)) == 5
    titles = [each.text for each in svg.iter(f"{SVG}title")][1:]
    assert titles[:2] == ["a <b>, FP: 4", "a <b>, 8w8a: 3 ± 0.5"]


@pytest.mark.parametrize("gap", [None, float("nan"), float("inf")])
def test_a_line_has_a_gap_where_nothing_was_measured(gap):
    svg = draw_chart(Curve("a", (1.0, 2.0, gap, 3.0, gap)))
    assert [len(line) for line in list_lines(svg)] == [2]
    assert len(list_markers(svg)) == 3
    assert "6w6a nothing, 5w5a 3, 4w4a nothing" in svg.find(f"{SVG}desc").text


def test_error_bars_are_drawn_for_positive_deviations_and_lie_within_the_axis():
    svg = draw_chart(Curve("a", (10.0, 20.0, 30.0, 40.0, 50.0), (None, 0.0, 5.0, float("nan"), 10.0)))
    bars = [each.get("d") for each in svg.iter(f"{SVG}path") if each.get("class") == "deviation"]
    ends = [re.fullmatch(r"M[\d.]+ ([\d.]+)h8m-4 0V([\d.]+)m-4 0h8", bar).groups() for bar in bars]
    heights = [float(low) - float(high) for high, low in ends]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.3)
    assert "60" in list_texts(svg)
    assert "4w4a 50 ± 10" in svg.find(f"{SVG}desc").text


def test_the_legend_has_the_colour_and_marker_of_each_curve():
    curves = [Curve(f"method {number}", (1.0 * number,)) for number in range(12)]
    svg = draw_chart(*curves, x_labels=("FP",))
    groups = svg.findall(f"{SVG}g")
    styles = [(group.get("style"), group.find(f"{SVG}path[@class='marker']").get("d")) for group in groups]
    assert styles[:12] == styles[12:]
    assert len(set(styles)) == 12
    assert len({shape for _, shape in styles[:7]}) == 7
    assert {curve.name for curve in curves} <= list_texts(svg).keys()


DEGENERATE = {
    "one label": ((Curve("a", (48.8,), (0.3,)),), ("FP",)),
    "equal": ((Curve("a", (5.0, 5.0)),), ("FP", "4w4a")),
    "zero": ((Curve("a", (0.0, 0.0)),), ("FP", "4w4a")),
    "negative": ((Curve("a", (-3.0, -48.8)),), ("FP", "4w4a")),
    "tiny": ((Curve("a", (1e-30, 2e-30)),), ("FP", "4w4a")),
    "huge": ((Curve("a", (1e15, -2e299)),), ("FP", "4w4a")),
    "nothing": ((Curve("a", (None, None)),), ("FP", "4w4a")),
    "no curve": ((), ("FP", "4w4a")),
    "no labels": ((), ()),
    "many labels": ((Curve("a", (1.0,) * 40),), tuple(f"{bits}w{bits}a" for bits in range(40))),
    "no names": ((Curve("", (1.0,)),), ("",)),
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_charts_are_drawn(kind):
    curves, x_labels = DEGENERATE[kind]
    svg = draw_chart(*curves, x_labels=x_labels)
    *_, right, bottom = map(float, svg.get("viewBox").split())
    for x, y in [*itertools.chain(*list_lines(svg)), *list_texts(svg).values()]:
        assert 0 <= x <= right
        assert 0 <= y <= bottom
    assert ("nothing measured" in list_texts(svg)) == (kind in ("nothing", "no curve", "no labels"))


def test_a_curve_of_another_length_is_refused():
    with pytest.raises(ValueError, match="the curve 'a' does not have a value"):
        draw_chart(Curve("a", (1.0,)))
    with pytest.raises(ValueError, match="the curve 'a' does not have a value"):
        draw_chart(Curve("a", (1.0,) * 5, (0.1,)))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_become_plain_text(text):
    svg = ElementTree.fromstring(
        render_svg(Chart("c", text, (text,), (Curve(text, (1.0,)),), text), standalone=True).encode()
    )
    assert {each.tag.removeprefix(SVG) for each in svg.iter()} == {
        *("svg", "title", "desc", "style", "rect", "path", "g", "text")
    }
    assert not [name for each in svg.iter() for name in each.attrib if name.startswith("on") or "href" in name]


def test_a_standalone_chart_has_its_colours_background_and_title():
    standalone, embedded = render_svg(CHART, standalone=True), render_svg(CHART)
    assert "prefers-color-scheme:dark" in standalone
    assert ">Boxes over bit-widths</text>" in standalone
    assert "<rect" in standalone
    assert not re.search(r"<style|<rect|Boxes over bit-widths</text>|\bid=", embedded)
    used = set(re.findall(r"var\((--[\w-]+)\)", standalone))
    assert used <= set(re.findall(r"(--[\w-]+):#", standalone))


@given(FINITE, FINITE)
def test_ticks_are_few_and_round_and_enclose_the_values(first, second):
    low, high = sorted((first, second))
    ticks = choose_ticks(low, high)
    assert 4 <= len(ticks) <= 6
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    room = 1e-6 * step
    assert ticks[0] <= low + room
    assert high - room <= ticks[-1]
    assert [right - left for left, right in itertools.pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1))
    assert step / 10 ** math.floor(math.log10(step * (1 + 1e-9))) == pytest.approx(1, rel=4.1)
    assert len(set(format_ticks(ticks))) == len(ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (41.2, 48.8, ("40", "42", "44", "46", "48", "50")),
        (0, 1, ("0.0", "0.2", "0.4", "0.6", "0.8", "1.0")),
        (-3, 4, ("-4", "-2", "0", "2", "4")),
        (5, 5, ("4.50", "4.75", "5.00", "5.25", "5.50")),
        (0, 0, ("-1.0", "-0.5", "0.0", "0.5", "1.0")),
        (1e6, 3e6, ("1000000", "1500000", "2000000", "2500000", "3000000")),
    ],
)
def test_ticks_of_examples(low, high, labels):
    assert format_ticks(choose_ticks(low, high)) == labels


def test_a_scale_is_linear():
    scale = Scale(10, 20, start=100, end=0)
    assert [scale.position(value) for value in (10, 15, 20)] == [100, 50, 0]


@pytest.mark.parametrize("text", ["SSQL-200ep (ours)", "WWW MMM", "voc_r18_c4.yaml · 0123456789 ± 4%", "iiii llll"])
def test_the_estimated_text_width_is_an_upper_bound(text):
    font = ImageFont.truetype(findfont("DejaVu Sans"), 160)
    assert font.getlength(text) / 10 <= estimate_width(text, 16) <= 2.2 * font.getlength(text) / 10


@given(st.text(st.characters(codec="ascii")), st.floats(20, 200))
def test_wrapped_lines_fit_and_keep_every_letter(text, room):
    wrapped = wrap_text(text, room, 16)
    assert all(estimate_width(line, 16) <= room or len(line) == 1 for line in wrapped)
    assert "".join("".join(wrapped).split()) == "".join(text.split())
