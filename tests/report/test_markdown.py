"""Pages as Markdown, parsed by an independent parser."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.report.pages import HOSTILE, PAGE, TagParser, make_hostile_page, make_png

from ssql_det.report.blocks import CodeBlock, Collapsible, Figure, Heading, ItemList, Paragraph, Table
from ssql_det.report.document import Document
from ssql_det.report.markup import strip_markup
from ssql_det.report.render_markdown import collect_image_files, render_markdown

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])  # an independent parser


def parse_rendered(document):
    return TagParser(MARKDOWN.render(render_markdown(document)))


def test_images_are_files_beside_the_page():
    referred = re.findall(r"!\[.*?\]\((.*?)\)", render_markdown(PAGE, "images/"))
    files = collect_image_files(PAGE)
    assert referred == ["images/boxes.svg", "images/toy.png", "images/FP.png", "images/4w4a.png"]
    assert list(files) == [each.removeprefix("images/") for each in referred]
    assert files["toy.png"] == make_png(900, 40)
    assert ElementTree.fromstring(files["boxes.svg"]).get("width")


def test_internal_links_use_githubs_anchors():
    text = render_markdown(PAGE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert headings == ["What fewer bits cost", "Boxes", "Boxes", "Settings", "Environment"]
    assert re.findall(r"\(#(.*?)\)", text) == ["environment", "boxes-1"]
    assert set(re.findall(r"\(#(.*?)\)", text)) <= set(PAGE.anchors)


def test_every_block_is_rendered():
    page = parse_rendered(PAGE)
    tags = [tag for tag, _ in page.tags if tag not in ("tr", "code", "a", "img", "em")]
    assert [tag for tag in tags if tag not in ("th", "td", "li")] == [
        *("h1", "p", "h2", "p", "p", "table", "thead", "tbody", "h3", "ul", "ol", "p", "p", "p", *["p"] * 4),
        *("details", "summary", "h3", "pre", "p", "h2", "pre"),
    ]
    assert [tags.count(tag) for tag in ("th", "td", "li")] == [7, 28, 4]
    assert [each.get("style") for each in page.all("th")] == [None] * 2 + ["text-align:right"] * 5
    assert "All settings" in page.texts


def test_a_document_without_a_title_has_no_title_heading():
    assert render_markdown(Document("", (Heading("Boxes"), Paragraph("`a`")))) == "## Boxes\n\n`a`\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_without_effect(text):
    page = parse_rendered(make_hostile_page(text))
    tags = [tag for tag, _ in page.tags if tag not in ("a", "code")]
    expected = [tag for tag, _ in parse_rendered(make_hostile_page("words")).tags if tag not in ("a", "code")]
    assert tags == expected
    assert all(each == "https://a.example/x.png" for each in page.values("href"))
    assert set(page.values("src")) == {"toy.png", "chart.svg", "scatter.svg"}
    if not set("`![\x00") & set(text):
        assert page.texts.count(text) == 17


@given(st.text("ab1 *_`[]()<>&;#!-+=|~\\\\.:$/^", min_size=1))
@example("`1``1`")
def test_any_text_is_rendered_unchanged(text):
    """Except for spaces, which code at the end of a line may lose."""
    for block in (
        Paragraph(text),
        Heading(text),
        ItemList((text,)),
        Table((text,), ((text,),)),
        Collapsible("", (Paragraph(text),)),
    ):
        words = "".join("".join(parse_rendered(Document("", (block,))).texts).split())
        times = 2 if isinstance(block, Table) else 1
        assert words == "".join(strip_markup(text).split()) * times, block


def test_bars_and_backslashes_stay_in_their_cells():
    (cells,) = [
        [
            text
            for text in parse_rendered(Document("", (Table(("a|b", "`c|d`"), (("|", "\\"),)),))).texts
            if text.strip()
        ]
    ]
    assert cells == ["a|b", "c|d", "|", "\\"]


def test_names_keep_their_underscores_as_they_are():
    assert render_markdown(Document("", (Paragraph("voc_2007_test is 4w4a; [1] (2) - 3.5 _x_"),))) == (
        "voc_2007_test is 4w4a; [1] (2) - 3.5 \\_x\\_\n"
    )


def test_a_code_block_keeps_fences_and_spaces():
    text = "````\n  a `b`\n````"
    assert parse_rendered(Document("", (CodeBlock(text),))).texts[0] == text + "\n"


def test_collapsible_blocks_are_markdown_too():
    collapsible = Collapsible("`a` & b", (ItemList(("one",)), Collapsible("deeper", (Paragraph("two"),))))
    page = parse_rendered(Document("", (collapsible,)))
    assert [tag for tag, _ in page.tags] == ["details", "summary", "ul", "li", "details", "summary", "p"]
    assert "a & b" in page.texts


def test_two_different_images_need_two_names():
    figure = Figure("a.png", make_png(), "one")
    assert list(collect_image_files(Document("", (figure, figure)))) == ["a.png"]
    with pytest.raises(ValueError, match=r"two different images of one page have the name 'a.png'"):
        collect_image_files(Document("", (figure, Collapsible("", (Figure("a.png", make_png(3, 3), "other"),)))))


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/a.png", "", "a b.png", ".png"])
def test_image_names_with_a_folder_are_refused(name):
    with pytest.raises(ValueError, match="without a folder"):
        collect_image_files(Document("", (Figure(name, make_png(), "words"),)))
