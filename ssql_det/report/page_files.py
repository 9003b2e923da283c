"""A page as files: HTML that needs nothing else, and Markdown with its pictures beside it."""

from __future__ import annotations

from pathlib import Path

from ssql_det.core.files import atomic_write
from ssql_det.report.document import Document
from ssql_det.report.render_html import render_html
from ssql_det.report.render_markdown import collect_image_files, render_markdown

MARKDOWN = "report.md"


def write_page(document: Document, html: Path) -> Path:
    """The page there; in its folder ``report.md`` and what that refers to.

    >>> write_page(document, Path("runs/mini/report/index.html"))
    """
    for name, content in collect_image_files(document).items():
        with atomic_write(html.parent / name) as file:
            file.write(content)
    write_text(html.parent / MARKDOWN, render_markdown(document))
    write_text(html, render_html(document))
    return html


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)
