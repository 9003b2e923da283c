"""``centred``: a weight on a grid that is symmetric about 0, with no code for 0 itself.

``w_q = (clamp(round(w / s - 1/2), -2^(b-1), 2^(b-1) - 1) + 1/2) * s``, the scale of each output channel by least
squares. Both signs reach equally far, so a scale that clips leaves the weights' mean where it was. In integers these
are the odd numbers ``2q + 1`` with scale ``s / 2``, an int8 up to 7 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssql_det.quant.affine import straight_through
from ssql_det.quant.quantizers.mse import ScaleSearch
from ssql_det.quant.quantizers.quantizer import WEIGHTS, QuantizedTensor, Quantizer, TensorSpec, smallest_int_dtype


@WEIGHTS.register("centred")
class CentredWeight(Quantizer):
    """Per output channel. A channel of zeros stays one; the scale is a constant for gradients."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self._search = ScaleSearch(_on_grid, spec.axis or 0, exponent=2.0)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        scale = self._search(x, bits)
        codes, inside = _codes(x.detach().to(scale.dtype), scale, bits)
        return straight_through(x, (codes + 0.5) * scale, inside)

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        scale = self._search(x, bits)
        odd = 2 * _codes(x.detach().to(scale.dtype), scale, bits)[0] + 1
        return QuantizedTensor(odd.to(smallest_int_dtype(1 - 2**bits, 2**bits - 1)), scale / 2, torch.zeros_like(scale))


def _codes(weight: Tensor, scale: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The integers ``q``, and where they lie within their range."""
    rounded = torch.round(weight / torch.where(scale == 0, 1, scale) - 0.5)
    codes = rounded.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes, codes == rounded


def _on_grid(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return (_codes(weight, scale, bits)[0] + 0.5) * scale
