"""Comparisons as CSV: one line for every method, bit-width and metric, with all digits.

>>> print(render_csv(compare(6, rows), compare(7, rows)))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from ssql_det.report.comparison import Comparison, ComparisonLine, Measurement

HEADER = (
    *("table", "dataset", "scope", "comparable", "backbone", "method", "settings", "config", "scheme", "calibration"),
    *("bits", "metric", "published", "measured", "std", "n", "difference", "state", "filled_by"),
)
_NOT_MEASURED = Measurement(None, None, 0)

Record: TypeAlias = tuple[str | int | float | None, ...]


def render_csv(*tables: Comparison) -> str:
    return format_csv(HEADER, (record for table in tables for line in table.lines for record in _records(table, line)))


def format_csv(header: Record, records: Iterable[Record]) -> str:
    """Lines end in a newline alone; a number that does not exist is an empty field.

    >>> format_csv(("method", "AP"), [("SSQL", None)])
    'method,AP\\nSSQL,\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(records)
    return text.getvalue()


def _records(table: Comparison, line: ComparisonLine) -> Iterator[Record]:
    """``state`` is measured, empty, or published only: this project cannot produce it yet."""
    of_table = (table.number, line.dataset, table.scope, "yes" if table.is_comparable else "no")
    of_line = (line.backbone, line.method, line.settings, line.config, line.scheme, line.calibration, line.bits)
    for metric, cell in line.cells.items():
        measured = cell.measured or _NOT_MEASURED
        is_known = line.is_published_only and cell.published is not None
        yield (
            *(*of_table, *of_line, metric),
            *(cell.published, measured.mean, measured.std, measured.n, cell.difference),
            *(("measured", "") if cell.measured else ("published only" if is_known else "empty", line.filled_by)),
        )
