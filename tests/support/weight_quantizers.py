"""Weight quantizers that can be called: those of learned rounding get integers first."""

from __future__ import annotations

from torch import Tensor

from ssql_det.quant import WEIGHTS, Quantizer
from ssql_det.quant.quantizers import LearnedRounding, TensorSpec
from ssql_det.quant.quantizers.mse import MseWeight


def build_weight_quantizer(name: str, spec: TensorSpec, weight: Tensor, bits: int) -> Quantizer:
    """The quantizer of this name; where it needs learned integers, it gets those of ``mse``."""
    quantizer = WEIGHTS.get(name)(spec)
    if isinstance(quantizer, LearnedRounding):
        quantizer.set_integers(MseWeight(spec).quantize(weight, bits))
    return quantizer
