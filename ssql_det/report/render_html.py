"""A page as one self-contained HTML file: nothing loaded from elsewhere, images and charts embedded, no other script
than that of `report.page_script`.

>>> page = Document("What bits cost", (Heading("Boxes"), Paragraph("See [the boxes](#boxes).")))
>>> render_html(page)[:15]
'<!DOCTYPE html>'
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from pathlib import PurePath

from ssql_det.report.blocks import (
    Block,
    Chart,
    CodeBlock,
    Collapsible,
    Figure,
    Heading,
    ItemList,
    Paragraph,
    Scatter,
    Slides,
    Table,
    Tiles,
)
from ssql_det.report.charts import render_svg
from ssql_det.report.document import Document, Renderer
from ssql_det.report.markup import MarkupStyle, clean_lines, strip_markup
from ssql_det.report.page_script import SCRIPT, SCRIPT_CSP_HASH
from ssql_det.report.scatter import render_scatter
from ssql_det.report.stylesheet import PAGE_CSS

_IMAGE_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
_HEAD = f"""\
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; script-src '{SCRIPT_CSP_HASH}'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<style>
{PAGE_CSS}</style>"""  # the empty icon keeps browsers from requesting favicon.ico


def render_html(document: Document) -> str:
    """The whole file. The table of contents comes right before the first section."""
    renderer = _HtmlRenderer(document)
    blocks, after_title = document.titled_blocks, 1 if document.title else 0
    first_section = next((index for index, block in enumerate(blocks) if _is_section(block)), after_title)
    before, after = renderer.render_blocks(blocks[:first_section]), renderer.render_blocks(blocks[first_section:])
    parts = [part for part in (before, _render_contents(document), after) if part]
    head = f"{_HEAD}\n<title>{escape(strip_markup(document.title))}</title>"
    body = "<main>\n" + "\n".join(parts) + f"\n</main>\n<script>{SCRIPT}</script>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _is_section(block: Block) -> bool:
    return isinstance(block, Heading) and block.level == 2


def _render_contents(document: Document) -> str:
    links = [
        f'<li><a href="#{escape(anchor)}">{escape(strip_markup(heading.text))}</a></li>'
        for heading, anchor in zip(document.headings, document.anchors, strict=True)
        if _is_section(heading)
    ]
    return f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>' if len(links) > 1 else ""


class _HtmlRenderer(Renderer):
    style = MarkupStyle(
        escape=escape,
        code=lambda code: f"<code>{escape(code)}</code>",
        link=lambda words, target: f'<a href="{escape(target)}">{words}</a>',
    )
    separator = "\n"

    def __init__(self, document: Document) -> None:
        super().__init__(document)
        self._unused_anchors = iter(self.anchors)  # one for each heading, in order

    def render_block(self, block: Block) -> str:
        match block:
            case Heading(text, level):
                return f'<h{level} id="{escape(next(self._unused_anchors))}">{self.render_text(text)}</h{level}>'
            case Paragraph(text):
                return f"<p>{self.render_text(text)}</p>"
            case ItemList(texts, is_numbered):
                tag = "ol" if is_numbered else "ul"
                items = "".join(f"<li>{self.render_text(text)}</li>" for text in texts)
                return f"<{tag}>{items}</{tag}>"
            case Table():
                return self._render_table(block)
            case CodeBlock(text):
                return f'<pre tabindex="0"><code>{escape(clean_lines(text))}</code></pre>'
            case Figure(_, _, caption):
                return self._render_figure(block, caption)
            case Slides(title, figures):
                slides = (self._render_figure(each, f"{title}, {each.caption}") for each in figures)
                content = "\n".join([f"<p>{self.render_text(title)}</p>", *slides])
                return f'<div class="slides" role="group" aria-label="{escape(strip_markup(title))}">{content}</div>'
            case Chart(_, title) | Scatter(_, title):
                caption = f"<figcaption>{self.render_text(title)}</figcaption>"
                svg = render_svg(block) if isinstance(block, Chart) else render_scatter(block)
                return f'<figure class="chart-figure">{caption}{svg}</figure>'
            case Tiles(tiles):
                items = "".join(
                    f"<li><span>{self.render_text(each.title)}</span><strong>{self.render_text(each.value)}</strong>"
                    f"<span>{self.render_text(each.text)}</span></li>"
                    for each in tiles
                )
                return f'<ul class="tiles">{items}</ul>'
            case Collapsible(summary, blocks):
                summary = self.render_text(summary)
                return f"<details><summary>{summary}</summary>\n{self.render_blocks(blocks)}\n</details>"

    def _render_figure(self, figure: Figure, alternative: str) -> str:
        image = f'<img src="{_make_data_url(figure.name, figure.content)}" alt="{escape(strip_markup(alternative))}">'
        return f"<figure>{image}<figcaption>{self.render_text(figure.caption)}</figcaption></figure>"

    def _render_table(self, table: Table) -> str:
        """A table in an element that scrolls on narrow screens; it takes keyboard focus, so it needs an ARIA label."""
        label = escape(strip_markup(table.caption or ", ".join(table.header)))
        caption = f"<caption><span>{self.render_text(table.caption)}</span></caption>" if table.caption else ""
        header = "".join(self._render_cell(table, column, text, "col") for column, text in enumerate(table.header))
        rows = (
            "".join(self._render_cell(table, column, text, "" if column else "row") for column, text in enumerate(row))
            for row in table.rows
        )
        body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
        return (
            f'<div class="scroll" role="group" tabindex="0" aria-label="{label}"><table>{caption}\n'
            f"<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )

    def _render_cell(self, table: Table, column: int, text: str, scope: str) -> str:
        tag = f'th scope="{scope}"' if scope == "col" or (scope and table.text_columns) else "td"
        css_class = ' class="number"' if column >= table.text_columns else ""
        return f"<{tag}{css_class}>{self.render_text(text)}</{tag[:2]}>"


def _make_data_url(name: str, content: bytes) -> str:
    image_type = _IMAGE_TYPES.get(PurePath(name).suffix.lower())
    if image_type is None:
        raise ValueError(f"image {name!r}: unsupported type; use one of {', '.join(_IMAGE_TYPES)}")
    return f"data:image/{image_type};base64,{b64encode(content).decode()}"
