"""Comparisons with the published tables as CSV: one record per comparison line and metric, with all digits.

>>> from ssql_det.report.comparison import compare_with_published
>>> render_csv(compare_with_published(6, [])).splitlines()[1].partition(',"')[0]
'6,voc_2007_test,all,yes,,random init.,,,,,FP,bbox/AP50,58.9,,,0,,empty'
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from ssql_det.report.comparison import Comparison, ComparisonLine
from ssql_det.report.row_groups import Measurement

# settings: what tells the rows of an ablation (Table 8) apart; comparable: whether the rows were measured on the data
# set of the published table; difference: measured minus published.
HEADER = (
    *("table", "dataset", "scope", "comparable", "backbone", "method", "settings", "config", "scheme", "calibration"),
    *("bits", "metric", "published", "measured", "std", "n", "difference", "state", "filled_by"),
)
_NOT_MEASURED = Measurement(None, None, 0)

Cell: TypeAlias = str | int | float | None
Record: TypeAlias = tuple[Cell, ...]
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 (full-width, too)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def render_csv(*comparisons: Comparison) -> str:
    records = (
        record for comparison in comparisons for line in comparison.lines for record in _make_records(comparison, line)
    )
    return format_csv(HEADER, records)


def format_csv(header: Record, records: Iterable[Record]) -> str:
    """CSV text with plain newlines. ``None`` is an empty field; a formula gets an apostrophe, so that it stays a text.

    >>> format_csv(("method", "AP"), [("SSQL", None), ("=1+1", "-3.5")])
    "method,AP\\nSSQL,\\n'=1+1,-3.5\\n"
    """
    return "".join(map(_format_record, (header, *records)))


def _format_record(record: Record) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(map(_disarm, record))  # so that a field with \r or \n is quoted
    return line.getvalue().removesuffix("\r\n") + "\n"


def _disarm(cell: Cell) -> Cell:
    """Mark a text as such that a spreadsheet would run as a formula: checkpoints and classes have foreign names."""
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def _make_records(comparison: Comparison, line: ComparisonLine) -> Iterator[Record]:
    """The records of a line, one per metric. ``state``: "measured", "no value" (there is nothing to find), "empty"
    (``filled_by`` is the command that measures the cell, if there is one) or "published only" (no command can)."""
    table_fields = (comparison.number, line.dataset, comparison.scope, "yes" if comparison.is_comparable else "no")
    line_fields = (line.backbone, line.method, line.settings, line.config, line.scheme, line.calibration, line.bits)
    for metric, cell in line.cells.items():
        measured = cell.measured or _NOT_MEASURED
        is_published_only = line.is_published_only and cell.published is not None
        yield (
            *(*table_fields, *line_fields, metric),
            *(cell.published, measured.mean, measured.std, measured.n, cell.difference),
            *(
                ("measured" if measured.n else "no value", "")
                if cell.measured
                else ("published only" if is_published_only else "empty", line.measure_command)
            ),
        )
