"""``minmax``, the quantizer of SSQL as published: the range is all that there is. Its rule: ``quant/affine.py``."""

from __future__ import annotations

from torch import Tensor

from ssql_det.quant.affine import choose_qparams, fake_quantize_weight, largest_magnitude
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, WEIGHTS, Integers, Quantizer, RangeQuantizer, integers_on


@WEIGHTS.register("minmax")
class MinMaxWeight(Quantizer):
    """Per output channel, symmetric, by the largest magnitude, which the gradient reaches."""

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return fake_quantize_weight(x, bits, self.place.axis or 0)

    def integers(self, x: Tensor, bits: int) -> Integers | None:
        bound = largest_magnitude(x.detach(), self.place.axis or 0)
        return integers_on(x.detach(), choose_qparams(-bound, bound, bits, symmetric=True))


@ACTIVATIONS.register("minmax")
class MinMaxActivation(RangeQuantizer):
    """Per tensor, asymmetric, from the least to the greatest value observed."""

    def range(self, bits: int) -> tuple[Tensor, Tensor]:
        return self.observer.ends
