"""Which rows may be averaged: those of one method, config and calibration. They differ in bits, seed and checkpoint.

>>> [(group.method, len(rows)) for group, rows in grouped(newest(rows), published_table(6))]
[('random init.', 0), ..., ('SSQL (ours)', 15), ...]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ssql_det.core.rows import Row
from ssql_det.report.names import published_name
from ssql_det.report.published import PublishedTable

UNNAMED = "(not named)"


@dataclass(frozen=True)
class Group:
    """``method`` is the printed name where there is one, else the rows' own. Without rows, the others are empty."""

    method: str
    config: str = ""
    calibration: str = ""


def grouped(rows: Iterable[Row], table: PublishedTable) -> list[tuple[Group, list[Row]]]:
    """Every published method in the printed order, then those of our own, whatever the order of the rows."""
    printed = table.methods
    groups: dict[Group, list[Row]] = {}
    for row in rows:
        method = published_name(row.method, printed) or row.method.strip() or UNNAMED
        groups.setdefault(Group(method, row.config, row.calibration), []).append(row)
    measured = {group.method for group in groups}
    groups |= {Group(method): [] for method in printed if method not in measured}
    place = {method: index for index, method in enumerate(printed)}
    order = sorted(groups, key=lambda each: (place.get(each.method, len(place)), *vars(each).values()))
    return [(group, groups[group]) for group in order]


def by_bits(rows: Sequence[Row], others: Iterable[str] = ()) -> dict[str, list[Row]]:
    """Rows by bit-width in their order, with an empty list for ``others`` that have none."""
    widths = in_order([*others, *(row.bits for row in rows)])
    return {bits: [row for row in rows if row.bits == bits] for bits in widths}


def in_order(widths: Iterable[str]) -> tuple[str, ...]:
    """Each once: FP first, then from many bits to few."""
    return tuple(sorted(set(widths), key=_width))


def _width(bits: str) -> tuple[int, int, int, str]:
    pair = re.fullmatch(r"(\d+)w(\d+)a", bits)
    if pair is None:
        return (0 if bits == "FP" else 2, 0, 0, bits)
    return (1, -int(pair[1]), -int(pair[2]), bits)
