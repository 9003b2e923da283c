"""A page with every kind of block, pages made of hostile texts, and a parser of the HTML that they are rendered to."""

import struct
import zlib
from html.parser import HTMLParser

from ssql_det.report.blocks import (
    Chart,
    CodeBlock,
    Collapsible,
    Curve,
    Figure,
    Heading,
    ItemList,
    Paragraph,
    Scatter,
    Series,
    Slides,
    Table,
    Tile,
    Tiles,
)
from ssql_det.report.document import Document

WIDTHS = ("FP", "8w8a", "6w6a", "5w5a", "4w4a")
VOID_TAGS = {"meta", "link", "img", "br", "hr"}


def make_png(width=2, height=2, rgb=(0, 114, 178)):
    """An image of one colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + bytes(rgb) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


CHART = Chart(
    "boxes",
    "Boxes over bit-widths",
    WIDTHS,
    (
        Curve("SSQL (ours)", (48.8, 48.7, 48.1, 47.0, 44.7), (0.2, 0.3, 0.2, None, 0.6)),
        Curve("BYOL", (44.7, 44.4, None, 41.2, 33.0)),
    ),
    "AP, per cent",
)
PAGE = Document(
    "What fewer bits cost",
    (
        Paragraph(
            "Measured with `ssql-det sweep`; see [the environment](#environment), [again](#boxes-1), [rows](a/b.jsonl)."
        ),
        Heading("Boxes"),
        CHART,
        Table(
            ("method", "values", *WIDTHS),
            tuple((f"method {number}", "measured", *["48.8 ± 1.2 (3)"] * 5) for number in range(4)),
            text_columns=2,
            caption="Every method on the [published](https://arxiv.org/abs/2207.05432) data, and `FP` is their start",
        ),
        Heading("Boxes", level=3),
        ItemList(("one", "`two`")),
        ItemList(("first", "second"), is_numbered=True),
        Figure("toy.png", make_png(900, 40), "A toy scene at `4w4a`"),
        Slides("One image", tuple(Figure(f"{bits}.png", make_png(900, 40), bits) for bits in ("FP", "4w4a"))),
        Collapsible(
            "All `settings`",
            (Heading("Settings", 3), CodeBlock("SEED 3\n\tLR " + "0" * 200), Paragraph("That is all.")),
        ),
        Heading("Environment"),
        CodeBlock("torch 2.14.1"),
    ),
)
HOSTILE = (
    "<script>alert(1)</script>",
    '"onload="alert(1)',
    "' onerror='alert(1)",
    "]]><script>alert(1)</script>",
    "--></style></title></details><img src=x onerror=alert(1)>",
    "[here](javascript:alert) [there](//evil.example) [up](../../etc/passwd) [data](data:text/html,x) [no](#nowhere)",
    '[words](https://a.example/"onload="x) [http](http://a.example)',
    "![image](https://a.example/x.png)",
    "a | b & &lt; &amp; \x00 \x1b[31m \ud800 \u202e",
    "`` ``` ~~~ *bold* _lean_ $x$ \\* [x]: https://a.example",
    "# heading",
    "> quoted",
    "1. one",
    "- point",
    "---",
    "===",
)


def make_hostile_page(text):
    """Every kind of block with this text."""
    return Document(
        text,
        (
            Heading(text),
            Paragraph(text),
            Heading(text, 3),
            ItemList((text, text)),
            Table((text, text), ((text, text),), caption=text),
            CodeBlock(text),
            Figure("toy.png", make_png(), text),
            Slides(text, (Figure("toy.png", make_png(), text),)),
            Chart("chart", text, (text,), (Curve(text, (1.0,)),), text),
            Scatter("scatter", text, (Series(text, ((1.0, 2.0),)),), text, text),
            Tiles((Tile(text, text, text),)),
            Collapsible(text, (Heading(text), Paragraph(text))),
        ),
    )


class TagParser(HTMLParser):
    """The tags of a page with their attributes, and the texts outside of styles; fails on a tag that is not closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self._open_tags = [], [], []
        self.feed(page)
        self.close()
        assert not self._open_tags

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), attributes
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_TAGS:
            self._open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open_tags.pop() == tag

    def handle_data(self, text):
        if "style" not in self._open_tags:
            self.texts.append(text)

    def all(self, *names):
        """The attributes of each tag with one of these names."""
        return [attributes for tag, attributes in self.tags if tag in names]

    def values(self, name):
        """The values of one attribute, of all tags that have it."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]
