"""Rows for a table, from one or several ``results.jsonl``: checked, each measurement once, and in groups.

Rows may be averaged that are of one line, config, scheme and calibration: they differ in bits, seed and checkpoint.

>>> rows = keep_newest(load_rows(["runs/seed0/results.jsonl", "runs/seed1/results.jsonl"]))
>>> printed = [RowGroup("voc_2007_test", "", row.method) for row in published_table(6).rows]
>>> [(group.method, len(rows)) for group, rows in group_rows(rows, printed, group_of)]
[('random init.', 0), ..., ('SSQL (ours)', 15), ...]
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.display_names import format_protocol, format_scheme
from ssql_det.report.markup import to_one_line

UNNAMED = "(not named)"


@dataclass(frozen=True)
class RowGroup:
    """``method`` is the printed name where there is one, else the rows' own. Without rows, what comes last is empty.

    Rows of detectors do not say their backbone: there it is empty, too.
    """

    dataset: str
    backbone: str
    method: str
    config: str = ""  # of a probe, its protocol
    scheme: str = ""
    calibration: str = ""

    @property
    def line(self) -> RowGroup:
        """What a published table tells it from others by."""
        return replace(self, config="", scheme="", calibration="")


def load_rows(paths: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """All whole rows of these files. A line torn by a kill is skipped with a warning; a file of none is refused."""
    found: list[Row] = []
    for path in paths:
        of_this = rows.read_rows(path)
        if not of_this:
            raise UserError(f"{path} holds no result row; give the results.jsonl that an evaluation wrote")
        found += map(_in_lines, of_this)
    return found


def keep_newest(found: Sequence[Row]) -> list[Row]:
    """One row a measurement: what was measured again replaces what was there.

    Of two rows of the same second the later one in ``found`` counts.
    """
    kept = {_measurement(row): row for row in sorted(found, key=_moment)}
    return list(kept.values())


def group_rows(
    rows: Iterable[Row], printed: Sequence[RowGroup], group_of: Callable[[Row], RowGroup]
) -> list[tuple[RowGroup, list[Row]]]:
    """Every published line in the printed order, then those of our own, whatever the order of the rows: printed methods
    first, as on a network that the table has not."""
    groups: dict[RowGroup, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row)
    measured = {group.line for group in groups}
    groups |= {line: [] for line in printed if line not in measured}
    place = {line: index for index, line in enumerate(printed)}
    methods = {line.method: index for index, line in reversed([*enumerate(printed)])}

    def order(group: RowGroup) -> tuple[object, ...]:
        network, method = (group.dataset, group.backbone), methods.get(group.method, len(place))
        return place.get(group.line, len(place)), network, method, *vars(group).values()

    return [(group, groups[group]) for group in sorted(groups, key=order)]


def group_by_bits(rows: Sequence[Row], others: Iterable[str] = ()) -> dict[str, list[Row]]:
    """Rows by bit-width in their order, with an empty list for ``others`` that have none."""
    widths = sort_bits([*others, *(row.bits for row in rows)])
    return {bits: [row for row in rows if row.bits == bits] for bits in widths}


def sort_bits(widths: Iterable[str]) -> tuple[str, ...]:
    """Each once: FP first, then from many bits to few."""
    return tuple(sorted(set(widths), key=_width))


def average_over_bits(rows: Sequence[Row], name: str, widths: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """A row for each checkpoint that has every one of these widths, with the mean over them; ``name`` is its bits.

    >>> average_over_bits(rows, "Avg.", ["FP", "4w4a"], ["linear/top1"])[0].metrics
    {'linear/top1': 89.3}
    """
    of_checkpoint: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        of_checkpoint.setdefault((row.checkpoint_hash or row.checkpoint, row.seed), {})[row.bits] = row
    found = []
    for by_width in of_checkpoint.values():
        figures = {
            metric: [finite_or_none(by_width[bits].metrics.get(metric)) for bits in widths if bits in by_width]
            for metric in metrics
        }
        means = {
            metric: statistics.fmean(finite)
            for metric, values in figures.items()
            if len(finite := [value for value in values if value is not None]) == len(widths)
        }
        if means:
            found.append(replace(next(iter(by_width.values())), bits=name, metrics=means))
    return found


def _measurement(row: Row) -> tuple[str | int, ...]:
    weights = row.checkpoint_hash or row.checkpoint
    how = (row.network, format_protocol(row.protocol), format_scheme(row), row.placement, str(row.calibration))
    return (weights, row.config, row.dataset, row.bits, row.scope, row.seed, *how)


def _moment(row: Row) -> datetime:
    moment = datetime.fromisoformat(row.time)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _in_lines(row: Row) -> Row:
    """Whatever a foreign file has for a text, it is one printable line."""
    texts: dict[str, Any] = {name: to_one_line(value) for name, value in vars(row).items() if isinstance(value, str)}
    calibration = replace(row.calibration, data=to_one_line(row.calibration.data))
    overrides = {to_one_line(pattern): to_one_line(bits) for pattern, bits in row.overrides.items()}
    protocol = {to_one_line(name): _line(value) for name, value in row.protocol.items()}
    return replace(row, **texts, calibration=calibration, overrides=overrides, protocol=protocol)


def _line(value: str | int | float | list[str]) -> str | int | float | list[str]:
    if isinstance(value, list):
        return list(map(to_one_line, value))
    return to_one_line(value) if isinstance(value, str) else value


def _width(bits: str) -> tuple[int, int, int, str]:
    pair = re.fullmatch(r"(\d+)w(\d+)a", bits)
    if pair is None:
        return (0 if bits == "FP" else 2, 0, 0, bits)
    return (1, -int(pair[1]), -int(pair[2]), bits)
