"""Rows for a table, from one or several ``results.jsonl``: checked, and each measurement once.

>>> rows = newest(read_rows(["runs/seed0/results.jsonl", "runs/seed1/results.jsonl"]))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Row
from ssql_det.report.texts import one_line

_TEXTS = (
    *("method", "checkpoint", "checkpoint_hash", "config", "dataset"),
    *("bits", "scope", "calibration", "engine", "time"),
)


def read_rows(paths: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """All whole rows of these files. A line torn by a kill is skipped with a warning; a file of none is refused."""
    found = []
    for path in paths:
        of_this = rows.read(path)
        if not of_this:
            raise UserError(f"{path} holds no result row; give the results.jsonl that an evaluation wrote")
        found += [_checked(row, path) for row in of_this]
    return found


def newest(found: Sequence[Row]) -> list[Row]:
    """One row a measurement: what was measured again replaces what was there.

    Of two rows of the same second the later one in ``found`` counts.
    """
    kept = {_measurement(row): row for row in sorted(found, key=_moment)}
    return list(kept.values())


def _measurement(row: Row) -> tuple[str | int, ...]:
    weights = row.checkpoint_hash or row.checkpoint
    return (weights, row.config, row.dataset, row.bits, row.scope, row.calibration, row.seed)


def _moment(row: Row) -> datetime:
    moment = datetime.fromisoformat(row.time)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _checked(row: Row, path: str | os.PathLike[str]) -> Row:
    """The file is foreign until each field that a table uses has its type, and texts are one printable line."""
    wrong = [name for name in _TEXTS if not isinstance(getattr(row, name), str)]
    if not isinstance(row.seed, int):
        wrong.append("seed")
    if not isinstance(row.metrics, dict) or not all(_is_figure(value) for value in row.metrics.values()):
        wrong.append("metrics")
    if not wrong:
        try:
            _moment(row)
        except ValueError:
            wrong.append("time")
    if wrong:
        raise UserError(f"{path} has a row whose {', '.join(wrong)} is not what a row holds; was it edited by hand?")
    texts: dict[str, Any] = {name: one_line(getattr(row, name)) for name in _TEXTS}
    return dataclasses.replace(row, **texts)


def _is_figure(value: object) -> bool:
    """A number that is not finite was written as null, so another one is not of this project; nor is 1e300."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300)
