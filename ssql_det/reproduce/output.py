"""Tables and report as files, from what the steps left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ssql_det.core.files import atomic_write
from ssql_det.report.as_csv import as_csv
from ssql_det.report.as_html import as_html
from ssql_det.report.as_markdown import as_markdown, picture_files
from ssql_det.report.comparison import blocks_of, overview
from ssql_det.report.document import Document, Table
from ssql_det.reproduce.page import report
from ssql_det.reproduce.reproduction import Reproduction


def write_tables(found: Reproduction) -> Iterator[Table]:
    """``tables/table6.md`` and ``.csv``; gives what to show of each on a terminal."""
    for table in found.tables.values():
        place = found.plan.out / "tables" / f"table{table.number}"
        _write(place.with_suffix(".md"), as_markdown(Document("", blocks_of(table))))
        _write(place.with_suffix(".csv"), as_csv(table))
        yield replace(overview(table, "bbox/AP"), caption=f"Table {table.number}, box AP: {table.dataset}")


def write_report(found: Reproduction) -> Path:
    """``report/index.html``, one file; beside it ``report.md`` with its pictures."""
    document, folder = report(found), found.plan.out / "report"
    for name, content in picture_files(document).items():
        with atomic_write(folder / name) as file:
            file.write(content)
    _write(folder / "report.md", as_markdown(document))
    _write(folder / "index.html", as_html(document))
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)
