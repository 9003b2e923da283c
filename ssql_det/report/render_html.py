"""A page as one file of HTML that opens from a disk: no script, nothing from elsewhere, pictures and charts within.

>>> page = Document("What bits cost", (Heading("Boxes"), Paragraph("See [the environment](#environment).")))
>>> render_html(page)[:15]
'<!DOCTYPE html>'
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath

from ssql_det.report.charts import render_svg
from ssql_det.report.document import (
    Block,
    Chart,
    CodeBlock,
    Collapsible,
    Document,
    Figure,
    Heading,
    ItemList,
    Paragraph,
    Table,
)
from ssql_det.report.markup import Style, clean_lines, render_markup, strip_markup
from ssql_det.report.stylesheet import PAGE_CSS

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
_HEAD = f"""\
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<style>
{PAGE_CSS}</style>"""  # without an icon, browsers ask the server for one


def render_html(document: Document) -> str:
    """The whole file. What is said before the first section stands before the list of contents, too."""
    anchors = document.anchors
    writer = _Writer(anchors, iter(anchors))
    blocks, after_title = document.with_title, 1 if document.title else 0
    first = next((place for place, block in enumerate(blocks) if _is_section(block)), after_title)
    before, after = writer.blocks(blocks[:first]), writer.blocks(blocks[first:])
    parts = [part for part in (before, _contents(document), after) if part]
    head = f"{_HEAD}\n<title>{escape(strip_markup(document.title))}</title>"
    body = "<main>\n" + "\n".join(parts) + "\n</main>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _is_section(block: Block) -> bool:
    return isinstance(block, Heading) and block.level == 2


def _contents(document: Document) -> str:
    links = [
        f'<li><a href="#{escape(anchor)}">{escape(strip_markup(heading.text))}</a></li>'
        for heading, anchor in zip(document.headings, document.anchors, strict=True)
        if _is_section(heading)
    ]
    return f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>' if len(links) > 1 else ""


@dataclass(frozen=True)
class _Writer:
    """``ids`` are what is left of the anchors: each heading takes the next."""

    anchors: Collection[str]
    ids: Iterator[str]

    def blocks(self, blocks: Sequence[Block]) -> str:
        return "\n".join(map(self.block, blocks))

    def block(self, block: Block) -> str:
        match block:
            case Heading(text, level):
                return f'<h{level} id="{escape(next(self.ids))}">{self.text(text)}</h{level}>'
            case Paragraph(text):
                return f"<p>{self.text(text)}</p>"
            case ItemList(texts, is_numbered):
                kind = "ol" if is_numbered else "ul"
                items = "".join(f"<li>{self.text(text)}</li>" for text in texts)
                return f"<{kind}>{items}</{kind}>"
            case Table():
                return self.table(block)
            case CodeBlock(text):
                return f'<pre tabindex="0"><code>{escape(clean_lines(text))}</code></pre>'
            case Figure(name, content, words):
                image = f'<img src="{_data(name, content)}" alt="{escape(strip_markup(words))}">'
                return f"<figure>{image}<figcaption>{self.text(words)}</figcaption></figure>"
            case Chart(_, title):
                caption = f"<figcaption>{self.text(title)}</figcaption>"
                return f'<figure class="drawn">{caption}{render_svg(block)}</figure>'
            case Collapsible(summary, blocks):
                return f"<details><summary>{self.text(summary)}</summary>\n{self.blocks(blocks)}\n</details>"

    def table(self, table: Table) -> str:
        """In a frame that scrolls where the page is too narrow; keys reach it, so it has a name."""
        name = escape(strip_markup(table.caption or ", ".join(table.header)))
        caption = f"<caption><span>{self.text(table.caption)}</span></caption>" if table.caption else ""
        header = "".join(self.cell(table, column, text, "col") for column, text in enumerate(table.header))
        body = "\n".join(
            "<tr>"
            + "".join(self.cell(table, column, text, "" if column else "row") for column, text in enumerate(row))
            + "</tr>"
            for row in table.rows
        )
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table>{caption}\n'
            f"<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )

    def cell(self, table: Table, column: int, text: str, scope: str) -> str:
        kind = f'th scope="{scope}"' if scope == "col" or (scope and table.names) else "td"
        stands = ' class="figure"' if column >= table.names else ""
        return f"<{kind}{stands}>{self.text(text)}</{kind[:2]}>"

    def text(self, text: str) -> str:
        return render_markup(text, _STYLE, self.anchors)


_STYLE = Style(
    words=escape,
    code=lambda code: f"<code>{escape(code)}</code>",
    link=lambda words, target: f'<a href="{escape(target)}">{words}</a>',
)


def _data(name: str, content: bytes) -> str:
    kind = _KINDS.get(PurePath(name).suffix.lower())
    if kind is None:
        raise ValueError(f"a page shows pictures of {', '.join(_KINDS)}, got {name!r}")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
