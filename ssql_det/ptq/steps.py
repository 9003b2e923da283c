"""Copies of activation quantizers whose parameters, such as the steps of ``lsq``, are trained for one bit-width."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ssql_det.quant import Quantizer, QuantPoint, RangeQuantizer


def copy_trainable(quantizers: Mapping[QuantPoint, Quantizer]) -> dict[QuantPoint, Quantizer]:
    """Copies, to be trained, of those of these quantizers that have parameters."""
    return {
        point: copy.deepcopy(quantizer).requires_grad_(True)
        for point, quantizer in quantizers.items()
        if next(quantizer.parameters(), None) is not None
    }


def make_groups(
    quantizers: Mapping[QuantPoint, Quantizer], point_bits: Mapping[QuantPoint, int], learning_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the learning rate is in units of the step at the point's bit-width, so that a step
    changes by a fraction of itself, whatever the scale of its tensor."""
    groups = []
    for point, quantizer in quantizers.items():
        step = 1.0
        if isinstance(quantizer, RangeQuantizer):
            step = quantizer.get_qparams(point_bits[point]).scale.abs().max().item()
        groups.append({"params": [*quantizer.parameters()], "lr": learning_rate * step})
    return groups
