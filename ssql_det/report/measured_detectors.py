"""Detectors as their result rows show them: the rows that may be averaged, named by what tells them from others.

Rows of one detector differ in seed and checkpoint alone. A backbone that was probed counts as a detector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.display_names import format_protocol, format_scheme
from ssql_det.report.row_groups import Measurement, group_by_bits, list_separate, measure

FLOAT = "FP"
HEADLINE = "4w4a"  # the bit-width that a page begins with, if it was measured
_IDENTITY = ("method", "network", "config", "scheme", "scope", "calibration", "protocol")


@dataclass(frozen=True)
class MeasuredDetector:
    """Rows that may be averaged, by bit-width, and what tells them from those of the others."""

    identity: Mapping[str, str]
    rows: tuple[Row, ...]
    name: str = ""

    @cached_property
    def rows_by_bits(self) -> dict[str, list[Row]]:
        return group_by_bits(self.rows)

    def get(self, bits: str, metric: str) -> Measurement | None:
        return measure(row.metrics[metric] for row in self.rows_by_bits.get(bits, ()) if metric in row.metrics)

    def get_mean(self, bits: str, metric: str) -> float | None:
        measured = self.get(bits, metric)
        return None if measured is None else measured.mean

    def get_loss(self, bits: str, metric: str) -> Measurement | None:
        """What the bit-width loses: the mean over checkpoints that were measured at full precision too."""
        values = {bits: self._get_values(bits, metric) for bits in (FLOAT, bits)}
        losses = [values[FLOAT][key] - value for key, value in values[bits].items() if key in values[FLOAT]]
        return measure(losses)

    def _get_values(self, bits: str, metric: str) -> dict[str, float]:
        found = (
            (_identify_weights(row), finite_or_none(row.metrics.get(metric))) for row in self.rows_by_bits.get(bits, ())
        )
        return {key: value for key, value in found if value is not None}

    def choose_headline(self) -> str:
        """4w4a, else the lowest of equally many bits, else the last bit-width; full precision if there is no other."""
        quantized = [bits for bits in self.rows_by_bits if bits != FLOAT]
        uniform = [bits for bits in quantized if bits not in list_separate(quantized)]
        return HEADLINE if HEADLINE in quantized else (uniform or quantized or [FLOAT])[-1]


def list_detectors(rows: Iterable[Row]) -> list[MeasuredDetector]:
    """The groups of rows of one data set, named by what differs between them."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_identify(row).items()), []).append(row)
    identities = [dict(key) for key in groups]
    differing = [field for field in _IDENTITY if len({each[field] for each in identities}) > 1] or ["method"]
    names = (" · ".join(each[field] for field in differing if each[field]) for each in identities)
    return [
        MeasuredDetector(identity, tuple(of_group), name or "the detector")
        for identity, of_group, name in zip(identities, groups.values(), names, strict=True)
    ]


def _identify(row: Row) -> dict[str, str]:
    """Rows with equal values may be averaged."""
    return {
        "method": row.method or row.checkpoint,
        "network": row.network if row.protocol else "",
        "config": row.config,
        "scheme": format_scheme(row),
        "scope": f"scope {row.scope}",
        "calibration": str(row.calibration),
        "protocol": format_protocol(row.protocol),
    }


def _identify_weights(row: Row) -> str:
    return f"{row.checkpoint_hash or row.checkpoint} {row.seed}"
