"""Load result rows, keep the newest of each measurement, and group the rows that may be averaged.

Rows of one group have the same settings; they may differ in bits, seed, checkpoint, engine and versions.

>>> sort_bits(["2w4a", "8w8a", "FP", "4w4a"])
('FP', '8w8a', '4w4a', '2w4a')
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ssql_det.core.errors import UserError
from ssql_det.core.rows import Row, finite_or_none, read_rows
from ssql_det.report.display_names import format_protocol, format_scheme
from ssql_det.report.markup import to_one_line

UNNAMED = "(not named)"  # in tables: the method of rows whose method is empty


@dataclass(frozen=True)
class RowGroup:
    """The fields that all rows of a group share. The group of a published row has no config, scheme and calibration.

    Published rows are those of the SSQL paper's tables. ``method`` is the paper's name for it if there is one.
    ``backbone`` is empty for detectors: their config determines it, and the paper has one detector for each data set.
    """

    dataset: str
    backbone: str
    method: str
    config: str = ""  # for a probe, the protocol
    scheme: str = ""  # as format_scheme prints it: quantizers, placement, norms and per-module bit-widths
    calibration: str = ""

    @property
    def published_group(self) -> RowGroup:
        """The group of the published row that the rows are compared with."""
        return replace(self, config="", scheme="", calibration="")


@dataclass(frozen=True)
class Measurement:
    """Mean and sample standard deviation of the ``n`` finite values of a metric."""

    mean: float | None  # None if n is 0
    std: float | None  # None if n is less than 2
    n: int


def measure(values: Iterable[float | None]) -> Measurement | None:
    """The mean of the values that are finite; ``None`` if there are no values at all.

    >>> measure([1.0, 3.0, None])
    Measurement(mean=2.0, std=1.4142135623730951, n=2)
    """
    all_values = list(map(finite_or_none, values))
    finite = [value for value in all_values if value is not None]
    if not finite:
        return Measurement(None, None, 0) if all_values else None
    return Measurement(statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else None, len(finite))


def load_rows(paths: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """All rows of the files; a file without any is an error. A line that a kill truncated is skipped with a warning.

    Every text of a row becomes one printable line.
    """
    rows: list[Row] = []
    for path in paths:
        file_rows = read_rows(path)
        if not file_rows:
            raise UserError(f"{path} holds no result rows; give the results.jsonl that an evaluation wrote")
        rows += map(_clean_texts, file_rows)
    return rows


def keep_newest(rows: Sequence[Row]) -> list[Row]:
    """The newest row of each checkpoint, bit-width and settings; of two with one time, the later one in ``rows``."""
    newest = {_identify_measurement(row): row for row in sorted(rows, key=_parse_time)}
    return list(newest.values())


def group_rows(
    rows: Iterable[Row], published_groups: Sequence[RowGroup], get_group: Callable[[Row], RowGroup]
) -> list[tuple[RowGroup, list[Row]]]:
    """Group rows: first the published groups in their order, with or without rows; then the other groups, sorted.

    The others are sorted by dataset and backbone; those of one backbone begin with the published methods.
    """
    groups: dict[RowGroup, list[Row]] = {}
    for row in rows:
        groups.setdefault(get_group(row), []).append(row)
    measured = {group.published_group for group in groups}
    groups |= {published: [] for published in published_groups if published not in measured}
    published_index = {published: index for index, published in enumerate(published_groups)}
    method_index = {published.method: index for index, published in reversed([*enumerate(published_groups)])}

    def sort_key(group: RowGroup) -> tuple[object, ...]:
        last = len(published_index)
        method = method_index.get(group.method, last)
        return (
            published_index.get(group.published_group, last),
            group.dataset,
            group.backbone,
            method,
            *vars(group).values(),
        )

    return [(group, groups[group]) for group in sorted(groups, key=sort_key)]


def group_by_bits(rows: Sequence[Row], required_bits: Iterable[str] = ()) -> dict[str, list[Row]]:
    """Rows by bit-width, sorted; a bit-width of ``required_bits`` that no row has gets an empty list."""
    bit_widths = sort_bits([*required_bits, *(row.bits for row in rows)])
    return {bits: [row for row in rows if row.bits == bits] for bits in bit_widths}


def sort_bits(bit_widths: Iterable[str]) -> tuple[str, ...]:
    """The distinct bit-widths: FP first, then from high to low; last, by name, labels of another form, as ``Avg.``."""
    return tuple(sorted(set(bit_widths), key=_bits_sort_key))


def list_separate(bit_widths: Iterable[str]) -> tuple[str, ...]:
    """Those that are no step of the sequence of weights and activations with equally many bits.

    >>> list_separate(["FP", "8w8a", "4w4a", "2w4a"])
    ('2w4a',)
    """
    pairs = ((bits, re.fullmatch(r"(\d+)w(\d+)a", bits)) for bits in bit_widths)
    return tuple(bits for bits, pair in pairs if bits != "FP" and not (pair and pair[1] == pair[2]))


def average_over_bits(rows: Sequence[Row], name: str, bit_widths: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """For each checkpoint and seed a row of means over ``bit_widths``, with ``name`` as its ``bits``.

    A metric that is missing or not finite at one of the bit-widths has no mean; a row without means is left out.
    """
    by_checkpoint: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        by_checkpoint.setdefault((row.checkpoint_hash or row.checkpoint, row.seed), {})[row.bits] = row
    averages = []
    for by_bits in by_checkpoint.values():
        values_by_metric = {
            metric: [finite_or_none(by_bits[bits].metrics.get(metric)) for bits in bit_widths if bits in by_bits]
            for metric in metrics
        }
        means = {
            metric: statistics.fmean(finite)
            for metric, values in values_by_metric.items()
            if len(finite := [value for value in values if value is not None]) == len(bit_widths)
        }
        if means:
            averages.append(replace(next(iter(by_bits.values())), bits=name, metrics=means))
    return averages


def _identify_measurement(row: Row) -> tuple[str | int, ...]:
    weights = row.checkpoint_hash or row.checkpoint
    settings = (row.network, format_protocol(row.protocol), format_scheme(row), row.placement, str(row.calibration))
    return (weights, row.config, row.dataset, row.bits, row.scope, row.seed, *settings)


def _parse_time(row: Row) -> datetime:
    time = datetime.fromisoformat(row.time)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _clean_texts(row: Row) -> Row:
    """Make every text of a row, which may be from an untrusted file, one printable line."""
    texts: dict[str, Any] = {name: to_one_line(value) for name, value in vars(row).items() if isinstance(value, str)}
    calibration = replace(row.calibration, data=to_one_line(row.calibration.data))
    overrides = {to_one_line(pattern): to_one_line(bits) for pattern, bits in row.overrides.items()}
    protocol = {to_one_line(name): _clean_value(value) for name, value in row.protocol.items()}
    return replace(row, **texts, calibration=calibration, overrides=overrides, protocol=protocol)


def _clean_value(value: str | int | float | list[str]) -> str | int | float | list[str]:
    if isinstance(value, list):
        return list(map(to_one_line, value))
    return to_one_line(value) if isinstance(value, str) else value


def _bits_sort_key(bits: str) -> tuple[int, int, int, str]:
    pair = re.fullmatch(r"(\d+)w(\d+)a", bits)
    if pair is None:
        return (0 if bits == "FP" else 2, 0, 0, bits)
    return (1, -int(pair[1]), -int(pair[2]), bits)
