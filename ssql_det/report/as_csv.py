"""A comparison as CSV: one line for every method, bit-width and metric, with all digits.

>>> print(as_csv(compare(6, rows)))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from ssql_det.report.tables import Comparison, Line, Measured

HEADER = (
    *("table", "dataset", "scope", "comparable", "method", "config", "calibration", "bits", "metric"),
    *("published", "measured", "std", "n", "difference", "filled_by"),
)
_NOT_MEASURED = Measured(None, None, 0)


def as_csv(table: Comparison) -> str:
    """Lines end in a newline alone; a number that does not exist is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for line in table.lines:
        writer.writerows(_records(table, line))
    return text.getvalue()


def _records(table: Comparison, line: Line) -> Iterator[tuple[str | int | float | None, ...]]:
    of_table = (table.number, table.dataset, table.scope, "yes" if table.is_comparable else "no")
    for metric, cell in line.cells.items():
        measured = cell.measured or _NOT_MEASURED
        yield (
            *(*of_table, line.method, line.config, line.calibration, line.bits, metric),
            *(cell.published, measured.mean, measured.std, measured.n, cell.difference),
            line.filled_by if cell.measured is None else "",
        )
