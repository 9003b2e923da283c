"""Pages and charts in a real browser; skipped without Chromium."""

import pytest
from support.report import chromium
from support.report.pages import HOSTILE, PAGE, WIDTHS, make_hostile_page

from ssql_det.report.blocks import Chart, Curve, Table
from ssql_det.report.charts import render_svg
from ssql_det.report.document import Document
from ssql_det.report.render_html import render_html

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG_NAME = "SSQL-200ep (ours) <&> with 256 images of voc_2007_trainval, seed 0, MinMax · voc_r18_c4.yaml"
NINE_CURVES = Chart(
    "nine",
    f"Nine methods: {LONG_NAME}",
    WIDTHS,
    tuple(
        Curve(f"{'WM@' * number} {LONG_NAME[: 12 * number]}", tuple(10.0 * number - index for index in range(5)))
        for number in range(9)
    ),
    "AP",
)
WIDE_LETTERS = Chart("broad", "W", ("FP",), tuple(Curve(f"WMW@ {number}", (1.0,)) for number in range(9)), "MM")
TEXT_BOXES = """
[...document.querySelectorAll("svg text")].map(text => {
    const box = text.getBBox();
    return [box.x, box.y, box.x + box.width, box.y + box.height];
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.find_browser() is None:
        pytest.skip("Chromium is not installed")
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def open_page(browser, tmp_path):
    def open_content(content, width, scheme, name="page.html"):
        (tmp_path / name).write_text(content, "utf-8")
        return browser.open(tmp_path / name, width, scheme)

    return open_content


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_a_page_fits_its_window_without_console_messages(open_page, width, scheme):
    page = open_page(render_html(PAGE), width, scheme)
    page.evaluate("document.querySelector('details').open = true")
    assert page.console_messages() == []
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth == 900)")
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_slider_shows_one_figure_at_a_time(open_page):
    page = open_page(render_html(PAGE), 800, "light")
    shown = "[...document.querySelectorAll('.slides figure')].filter(each => !each.hidden).map(each => each.innerText)"
    assert page.evaluate(shown) == ["FP"]
    page.evaluate("document.querySelector('.slides input').stepUp()")
    page.evaluate("document.querySelector('.slides input').dispatchEvent(new Event('input'))")
    assert page.evaluate(shown) == ["4w4a"]
    assert page.evaluate("document.querySelector('.slides input').ariaValueText") == "4w4a"
    assert page.console_messages() == []


def test_hostile_texts_neither_run_nor_break_the_page(open_page):
    pages = [make_hostile_page(text) for text in HOSTILE]
    all_texts = Document("all", tuple(block for page in pages for block in page.blocks))
    page = open_page(render_html(all_texts), 360, "light")
    assert page.console_messages() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelectorAll('main > details').length") == len(HOSTILE)


@pytest.mark.parametrize("chart", [NINE_CURVES, WIDE_LETTERS], ids=lambda chart: chart.name)
@pytest.mark.parametrize("width", [360, 1200])
def test_texts_of_a_chart_neither_overlap_nor_leave_it(open_page, width, chart):
    page = open_page(render_svg(chart, standalone=True), width, "dark", "chart.svg")
    assert page.console_messages() == []
    _, _, *size = map(float, page.evaluate("document.documentElement.getAttribute('viewBox')").split())
    boxes = page.evaluate(TEXT_BOXES)
    assert len(boxes) >= 9 + len(chart.x_labels) + 5
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert min(left, top) >= 0
        assert right <= size[0]
        assert bottom <= size[1]
        for other in boxes[:number]:
            assert left >= other[2] or right <= other[0] or top >= other[3] - 1 or bottom <= other[1] + 1


def test_a_click_on_a_heading_sorts_a_table_and_a_third_restores_it(open_page):
    rows = (("a", "4w4a", "9.5 ± 0.1 (3)"), ("c", "FP", "-"), ("b10", "8w8a", "10.2"), ("b9", "2w4a", "-1.0"))
    page = open_page(render_html(Document("", (Table(("name", "bits", "AP"), rows, text_columns=2),))), 800, "light")

    def click(column):
        page.evaluate(f"document.querySelectorAll('thead button')[{column}].click()")
        names = page.evaluate("[...document.querySelectorAll('tbody th')].map(cell => cell.textContent)")
        return names, page.evaluate("[...document.querySelectorAll('thead th')].map(cell => cell.ariaSort)")

    assert click(2) == (["b10", "a", "b9", "c"], [None, None, "descending"])
    assert click(2) == (["b9", "a", "b10", "c"], [None, None, "ascending"])
    assert click(0) == (["a", "b9", "b10", "c"], ["ascending", None, None])
    assert click(0) == (["c", "b10", "b9", "a"], ["descending", None, None])
    assert click(0) == (["a", "c", "b10", "b9"], [None, None, None])
    assert page.console_messages() == []
