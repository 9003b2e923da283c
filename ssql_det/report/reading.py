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
from ssql_det.report.names import described, scheme_of
from ssql_det.report.texts import one_line


def read_rows(paths: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """All whole rows of these files. A line torn by a kill is skipped with a warning; a file of none is refused."""
    found: list[Row] = []
    for path in paths:
        of_this = rows.read(path)
        if not of_this:
            raise UserError(f"{path} holds no result row; give the results.jsonl that an evaluation wrote")
        found += map(_in_lines, of_this)
    return found


def newest(found: Sequence[Row]) -> list[Row]:
    """One row a measurement: what was measured again replaces what was there.

    Of two rows of the same second the later one in ``found`` counts.
    """
    kept = {_measurement(row): row for row in sorted(found, key=_moment)}
    return list(kept.values())


def _measurement(row: Row) -> tuple[str | int, ...]:
    weights = row.checkpoint_hash or row.checkpoint
    how = (row.network, described(row.protocol), scheme_of(row), row.placement, str(row.calibration))
    return (weights, row.config, row.dataset, row.bits, row.scope, row.seed, *how)


def _moment(row: Row) -> datetime:
    moment = datetime.fromisoformat(row.time)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _in_lines(row: Row) -> Row:
    """Whatever a foreign file has for a text, it is one printable line."""
    texts: dict[str, Any] = {name: one_line(value) for name, value in vars(row).items() if isinstance(value, str)}
    calibration = dataclasses.replace(row.calibration, data=one_line(row.calibration.data))
    overrides = {one_line(pattern): one_line(bits) for pattern, bits in row.overrides.items()}
    protocol = {one_line(name): _line(value) for name, value in row.protocol.items()}
    return dataclasses.replace(row, **texts, calibration=calibration, overrides=overrides, protocol=protocol)


def _line(value: str | int | float | list[str]) -> str | int | float | list[str]:
    if isinstance(value, list):
        return list(map(one_line, value))
    return one_line(value) if isinstance(value, str) else value
