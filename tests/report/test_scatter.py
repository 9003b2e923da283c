"""Scatter charts as SVG, parsed again."""

import re
from xml.etree import ElementTree

import pytest
from support.report.pages import HOSTILE

from ssql_det.report.blocks import Scatter, Series
from ssql_det.report.document import Document
from ssql_det.report.render_latex import render_latex
from ssql_det.report.scatter import render_scatter

SVG = "{http://www.w3.org/2000/svg}"


def draw(*series, standalone=False):
    return ElementTree.fromstring(render_scatter(Scatter("s", "AP over MB", series, "MB", "AP"), standalone))


def list_texts(svg):
    return {each.text: (float(each.get("x")), float(each.get("y"))) for each in svg.iter(f"{SVG}text")}


def list_markers(svg):
    """The positions of the markers of each series; those of the legend come after."""
    groups = svg.findall(f"{SVG}g")
    return [
        [
            tuple(map(float, re.findall(r"[\d.-]+", each.get("transform"))))
            for each in group.findall(f"{SVG}path[@class='marker']")
        ]
        for group in groups
    ]


def test_points_are_at_their_values_on_both_axes():
    points = ((0.0, 10.0), (4.0, 40.0), (1.0, 25.0))
    svg = draw(Series("a", points), Series("b", ((2.0, 30.0),)))
    texts = list_texts(svg)
    first, second = list_markers(svg)[:2]
    assert (len(first), len(second)) == (3, 1)
    for (x, y), (left, top) in zip([*points, (2.0, 30.0)], [*first, *second], strict=True):
        assert left == pytest.approx(texts["0"][0] + x / 4 * (texts["4"][0] - texts["0"][0]), abs=0.11)
        assert top == pytest.approx(texts["10"][1] - 5 + (y - 10) / 30 * (texts["40"][1] - texts["10"][1]), abs=0.11)
    assert {"AP", "MB", "a", "b"} <= texts.keys()
    assert "a: 10 at 0, 40 at 4, 25 at 1; b: 30 at 2" in svg.find(f"{SVG}desc").text


def test_only_a_series_that_is_a_line_is_joined_in_its_order():
    points = ((3.0, 1.0), (1.0, 2.0), (2.0, float("nan")), (4.0, 5.0))
    assert not list(draw(Series("a", points)).iter(f"{SVG}polyline"))
    svg = draw(Series("a", points, is_line=True))
    (line,) = svg.iter(f"{SVG}polyline")
    corners = [tuple(map(float, corner.split(","))) for corner in line.get("points").split()]
    assert corners == list_markers(svg)[0]
    assert len(corners) == 3


@pytest.mark.parametrize("series", [(), (Series("a", ()),), (Series("a", ((1.0, float("inf")),)),)])
def test_nothing_measured_is_said(series):
    assert "nothing measured" in list_texts(draw(*series))


@pytest.mark.parametrize("points", [((1.0, 2.0),), ((5e6, 1e-9), (5e6, 1e-9)), ((-3.0, 1e9), (1e-3, -1e9))])
def test_everything_is_inside_of_the_picture(points):
    svg = draw(Series("a", points, is_line=True))
    *_, right, bottom = map(float, svg.get("viewBox").split())
    for x, y in [*(position for each in list_markers(svg)[:1] for position in each), *list_texts(svg).values()]:
        assert 0 <= x <= right
        assert 0 <= y <= bottom


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_become_plain_text(text):
    chart = Scatter("s", text, (Series(text, ((1.0, 2.0),)),), text, text)
    svg = ElementTree.fromstring(render_scatter(chart, standalone=True).encode())
    assert {each.tag.removeprefix(SVG) for each in svg.iter()} == {
        *("svg", "title", "desc", "style", "rect", "path", "g", "text")
    }
    assert not [name for each in svg.iter() for name in each.attrib if name.startswith("on") or "href" in name]


def test_latex_has_the_points_as_a_table():
    chart = Scatter("s", "AP over MB", (Series("uniform", ((0.4, 38.25), (0.3, 33.0))),), "MB", "AP")
    text = render_latex(Document("", (chart,)))
    assert "uniform & 0.4 & 38.25" in text
    assert "uniform & 0.3 & 33" in text
