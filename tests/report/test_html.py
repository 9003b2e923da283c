"""Pages as HTML, parsed again."""

import base64
import hashlib
import io
import re
from collections import Counter

import pytest
from PIL import Image
from support.report.pages import HOSTILE, PAGE, TagParser, make_hostile_page, make_png

from ssql_det.report.blocks import Figure, Heading, Paragraph, Table, Tile, Tiles
from ssql_det.report.document import Document
from ssql_det.report.page_script import SCRIPT
from ssql_det.report.render_html import render_html
from ssql_det.report.render_latex import render_latex
from ssql_det.report.render_markdown import render_markdown

KNOWN_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "main", "nav", "h1", "h2", "h3", "p", "ul", "ol", "li"),
    *("a", "code", "pre", "div", "table", "caption", "span", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "strong", "script"),
    *("img", "details", "summary", "svg", "desc", "g", "path", "polyline", "text"),
}


def is_internal(target):
    return target.startswith(("#", "data:"))


def test_a_page_is_self_contained():
    page = render_html(PAGE)
    tags = TagParser(page)
    assert page.startswith("<!DOCTYPE html>\n")
    assert {tag for tag, _ in tags.tags} <= KNOWN_TAGS
    assert all(src.startswith("data:image/png;base64,") for src in tags.values("src"))
    assert [target for target in tags.values("href") if not is_internal(target)] == [
        "a/b.jsonl",
        "https://arxiv.org/abs/2207.05432",
    ]
    assert "url(" not in page
    assert "@import" not in page
    (policy,) = (each["content"] for each in tags.all("meta") if "http-equiv" in each)
    source = base64.b64encode(hashlib.sha256(get_script(page).encode()).digest()).decode()
    assert policy == f"default-src 'none'; script-src 'sha256-{source}'; style-src 'unsafe-inline'; img-src data:"


def get_script(page):
    """The only one of the page."""
    assert page.lower().count("<script") == page.lower().count("</script") == 1
    return page[page.index("<script>") + len("<script>") : page.index("</script>")]


def test_ids_are_unique_and_every_internal_link_has_a_target():
    tags = TagParser(render_html(PAGE))
    ids = tags.values("id")
    assert ids == ["what-fewer-bits-cost", "boxes", "boxes-1", "settings", "environment"]
    assert {each[1:] for each in tags.values("href") if each.startswith("#")} == {"boxes", "boxes-1", "environment"}


def test_the_table_of_contents_lists_the_sections():
    page = render_html(PAGE)
    nav = page[page.index("<nav") : page.index("</nav>")]
    assert re.findall(r'href="#(.*?)">(.*?)<', nav) == [("boxes", "Boxes"), ("environment", "Environment")]
    assert page.index("Measured with") < page.index("<nav") < page.index('<h2 id="boxes"')
    assert "<nav" not in render_html(Document("One", (Heading("Alone"),)))


def test_a_page_is_accessible():
    page = render_html(PAGE)
    tags = TagParser(page)
    assert tags.all("html") == [{"lang": "en"}]
    assert "<title>What fewer bits cost</title>" in page
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tags.all("meta")
    assert [image["alt"] for image in tags.all("img")] == ["A toy scene at 4w4a", "One image, FP", "One image, 4w4a"]
    assert Counter(th["scope"] for th in tags.all("th")) == {"col": 7, "row": 4}
    scrollable, slides = tags.all("div")
    assert slides["aria-label"] == "One image"
    assert scrollable["aria-label"] == "Every method on the published data, and FP is their start"
    assert len(tags.all("figcaption")) == len(tags.all("figure")) == 4
    assert [svg["role"] for svg in tags.all("svg")] == ["img"]


def test_text_columns_are_aligned_left_and_numbers_right():
    page = render_html(Document("", (Table(("name", "kind", "AP"), (("a", "b", "1.0"),), text_columns=2),)))
    assert '<th scope="row">a</th><td>b</td><td class="number">1.0</td>' in page
    assert '<tr><td class="number">1</td></tr>' in render_html(
        Document("", (Table(("n",), (("1",),), text_columns=0),))
    )


def test_images_are_embedded_unchanged():
    content = make_png(5, 3)
    (image,) = TagParser(render_html(Document("", (Figure("a.png", content, "words"),)))).all("img")
    decoded = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    assert decoded == content
    assert Image.open(io.BytesIO(decoded)).size == (5, 3)
    with pytest.raises(ValueError, match=r"'a.html': unsupported type; use one of .png"):
        render_html(Document("", (Figure("a.html", content, "words"),)))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_without_effect(text):
    page = render_html(make_hostile_page(text))
    page.encode()
    assert get_script(page) == SCRIPT
    tags = TagParser(page)
    assert {tag for tag, _ in tags.tags} <= KNOWN_TAGS
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert all(is_internal(each) or each == "https://a.example/x.png" for each in tags.values("href"))
    assert all(src.startswith("data:image/png") for src in tags.values("src"))
    ids = tags.values("id")
    assert len(ids) == len(set(ids)) == 4
    if not set("`![\x00") & set(text):
        assert tags.texts.count(text) >= 21  # a chart breaks long names into lines


def test_tiles_are_a_list_of_large_numbers():
    page = Document("Tiles", (Tiles((Tile("`SSQL`", "-1.2 AP", "at 4w4a"), Tile("BYOL <&>", "not measured", ""))),))
    texts = TagParser(render_html(page)).texts
    assert texts[texts.index("SSQL") :][:4] == ["SSQL", "-1.2 AP", "at 4w4a", "BYOL <&>"]
    assert render_markdown(page).endswith("- `SSQL`: -1.2 AP, at 4w4a\n- BYOL \\<&>: not measured\n")
    assert "\\item BYOL \\textless{}\\&\\textgreater{}: not measured" in render_latex(page)


def test_only_addresses_files_and_headings_become_links():
    text = "[a](#here) [b](https://x.example/y?z=1) [c](rows.jsonl) [d](x/y.md) [`e`](z.md)"
    page = render_html(Document("Here", (Paragraph(text),)))
    assert TagParser(page).values("href")[1:] == ["#here", "https://x.example/y?z=1", "rows.jsonl", "x/y.md", "z.md"]
    assert '<a href="z.md"><code>e</code></a>' in page


def test_anchors_are_those_of_github():
    texts = ("A & B", "voc_2007: 4.5", "`code` here", "[words](x.md)", "???", "Überblick", "Here", "Here", "here-1")
    assert Document("Here", tuple(map(Heading, texts))).anchors == (
        *("here", "a--b", "voc_2007-45", "code-here", "words", "section", "überblick", "here-1", "here-2", "here-1-1"),
    )
    assert Heading("A & B").anchor == "a--b"
