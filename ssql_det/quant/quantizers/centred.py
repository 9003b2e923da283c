"""``centred``: weights on a grid that is symmetric about 0 and does not contain 0.

``w_q = (q + 1/2) * s`` with ``q = clamp(round(w / s - 1/2), -2^(b-1), 2^(b-1) - 1)`` and the scale ``s`` of least
squared error per output channel, at ``b`` bits. The grid reaches equally far on both sides, so clipping does not shift
the mean of the weights. The odd integers ``2q + 1`` are stored with scale ``s / 2``; they fit into int8 up to 7 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssql_det.quant.affine import straight_through
from ssql_det.quant.quantizers.mse import ScaleSearch
from ssql_det.quant.quantizers.quantizer import WEIGHTS, QuantizedTensor, Quantizer, TensorSpec, smallest_int_dtype


@WEIGHTS.register("centred")
class CentredWeight(Quantizer):
    """Per output channel. A channel of zeros stays zero; no gradient flows through the scale."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self._search = ScaleSearch(_fake_quantize, spec.axis, exponent=2.0)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        scale = self._search(x, bits)
        integers, in_range = _quantize(x.detach().to(scale.dtype), scale, bits)
        return straight_through(x, (integers + 0.5) * scale, in_range)

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor:
        scale = self._search(x, bits)
        odd_integers = 2 * _quantize(x.detach().to(scale.dtype), scale, bits)[0] + 1
        dtype = smallest_int_dtype(1 - 2**bits, 2**bits - 1)
        return QuantizedTensor(odd_integers.to(dtype), scale / 2, zero_point=torch.zeros_like(scale))


def _quantize(weight: Tensor, scale: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the integers ``q``, and a mask of the integers that were not clamped."""
    rounded = torch.round(weight / torch.where(scale == 0, 1, scale) - 0.5)
    integers = rounded.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return integers, integers == rounded


def _fake_quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return (_quantize(weight, scale, bits)[0] + 0.5) * scale
