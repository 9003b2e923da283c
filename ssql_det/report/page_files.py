"""Write a page as one self-contained HTML file, and as Markdown with image files, into the same folder."""

from __future__ import annotations

from pathlib import Path

from ssql_det.core.files import atomic_write
from ssql_det.report.document import Document
from ssql_det.report.render_html import render_html
from ssql_det.report.render_markdown import collect_image_files, render_markdown

MARKDOWN_NAME = "report.md"


def write_page(document: Document, html: Path) -> Path:
    """Write the HTML file ``html``, and ``report.md`` with its images into the same folder.

    >>> sorted(path.name for path in write_page(Document("Title", ()), Path("report/index.html")).parent.iterdir())
    ['index.html', 'report.md']
    """
    for name, content in collect_image_files(document).items():
        with atomic_write(html.parent / name) as file:
            file.write(content)
    write_text(html.parent / MARKDOWN_NAME, render_markdown(document))
    write_text(html, render_html(document))
    return html


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)
