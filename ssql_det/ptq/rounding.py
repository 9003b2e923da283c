"""The rounding of weights: on a grid while it is learned, and as the integers that are kept."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from ssql_det.quant import Quantization, QuantizedTensor, Quantizer, QuantPoint
from ssql_det.quant.quantizers import GridQuantizer, LearnedRounding, SoftRounding


def build_soft_rounding(
    quantization: Quantization, point: QuantPoint, quantizer: GridQuantizer, bits: int
) -> SoftRounding:
    weight = quantization.get_weight(point)
    return SoftRounding(quantizer.spec, weight, quantizer.choose_grid(weight, bits))


def get_iterations(quantization: Quantization, points: Iterable[QuantPoint]) -> int:
    """The number of iterations that the scheme asks for."""
    quantizer = quantization[next(iter(points))]
    assert isinstance(quantizer, LearnedRounding)
    return quantizer.iterations


def store_integers(quantization: Quantization, point: QuantPoint, quantized: QuantizedTensor | None) -> LearnedRounding:
    """The quantizer of the scheme with these integers."""
    stored = copy.deepcopy(quantization[point])
    assert isinstance(stored, LearnedRounding)
    assert quantized is not None
    stored.set_integers(quantized)
    return stored


def round_to_nearest(
    quantization: Quantization, quantizers: Mapping[QuantPoint, GridQuantizer], point_bits: Mapping[QuantPoint, int]
) -> dict[QuantPoint, Quantizer]:
    return {
        point: store_integers(quantization, point, each.quantize(quantization.get_weight(point), point_bits[point]))
        for point, each in quantizers.items()
    }
