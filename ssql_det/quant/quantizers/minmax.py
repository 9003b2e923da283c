"""``minmax``, SSQL's published quantizer, which uses the whole range. Its formulas are in ``quant/affine.py``."""

from __future__ import annotations

from torch import Tensor

from ssql_det.quant.affine import choose_qparams, fake_quantize_weight, max_abs_per_channel
from ssql_det.quant.quantizers.quantizer import (
    ACTIVATIONS,
    WEIGHTS,
    QuantizedTensor,
    Quantizer,
    RangeQuantizer,
    quantize_tensor,
)


@WEIGHTS.register("minmax")
class MinMaxWeight(Quantizer):
    """Per output channel, symmetric, up to the largest magnitude; the gradient flows through the scale."""

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return fake_quantize_weight(x, bits, self.spec.axis)

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        max_abs = max_abs_per_channel(x.detach(), self.spec.axis)
        return quantize_tensor(x.detach(), choose_qparams(-max_abs, max_abs, bits, symmetric=True))


@ACTIVATIONS.register("minmax")
class MinMaxActivation(RangeQuantizer):
    """Per tensor, asymmetric, from the least to the greatest observed value."""

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        return self.observer.range
