"""Sensitivity analysis: how much a detector degrades when only one group of its modules is quantized.

The degradation is the drop in AP or, faster to compute, the distillation loss, both on selection images. When the group
is a head, the rest is float, so the head gets the proposals of the float detector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssql_det.core.console import track
from ssql_det.detect.groups import ModuleGroup
from ssql_det.detect.measurements import Measurer
from ssql_det.quant import Bits


@dataclass(frozen=True)
class GroupSensitivity:
    """The degradation of a detector when only one group of modules is quantized: AP lost, or a distillation loss."""

    group: ModuleGroup
    degradation: float


def measure_sensitivities(
    measurer: Measurer, quantity: str, groups: Sequence[ModuleGroup], bits: Bits
) -> Iterator[GroupSensitivity]:
    """Quantize one group at a time, and yield how much the detector degrades."""
    for group in track(groups, "groups of modules"):
        yield GroupSensitivity(group, measurer.measure_loss(quantity, Bits.FP, group.at(bits)))


def sort_by_degradation(sensitivities: Sequence[GroupSensitivity]) -> list[GroupSensitivity]:
    """Sort the groups, the largest degradation first."""
    return sorted(sensitivities, key=lambda sensitivity: -sensitivity.degradation)


def select_overrides(sensitivities: Sequence[GroupSensitivity], count: int, bits: Bits) -> dict[str, str]:
    """The content of a bits file, bit-widths by pattern of module names, that gives the ``count`` most sensitive groups
    ``bits``.

    >>> a, b = ModuleGroup("a.*", ()), ModuleGroup("b.*", ())
    >>> select_overrides([GroupSensitivity(a, 0.1), GroupSensitivity(b, 3.0)], 1, Bits(8, 8))
    {'b.*': '8w8a'}
    """
    most_sensitive = sort_by_degradation(sensitivities)[:count]
    overrides = (sensitivity.group.at(bits) for sensitivity in most_sensitive)
    return {pattern: str(override) for each in overrides for pattern, override in each.items()}
