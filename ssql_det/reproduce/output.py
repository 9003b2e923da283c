"""Tables and report as files, from what the steps left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ssql_det.report.as_csv import as_csv
from ssql_det.report.as_markdown import as_markdown
from ssql_det.report.comparison import blocks_of, overview
from ssql_det.report.document import Document, Table
from ssql_det.report.files import write_page, write_text
from ssql_det.reproduce.page import report
from ssql_det.reproduce.reproduction import Reproduction


def write_tables(found: Reproduction) -> Iterator[Table]:
    """``tables/table6.md`` and ``.csv``; gives what to show of each on a terminal."""
    for number, table in found.tables.items():
        part = found.parts_of(number)[0]
        place = found.plan.out / "tables" / f"table{number}"
        write_text(place.with_suffix(".md"), as_markdown(Document("", blocks_of(table))))
        write_text(place.with_suffix(".csv"), as_csv(table))
        yield replace(overview(table, part.metric), caption=f"Table {number}, {part.figure}: {table.dataset}")


def write_report(found: Reproduction) -> Path:
    """``report/index.html``, one file; beside it ``report.md`` with its pictures."""
    return write_page(report(found), found.plan.out / "report" / "index.html")
