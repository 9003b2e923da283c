"""``dorefa``: weights that ``tanh`` limits before they are quantized.

``r = tanh(w) / (2 max|tanh(w)|) + 1/2`` lies in [0, 1], and ``2 round((2^b - 1) r) / (2^b - 1) - 1`` in [-1, 1] is the
source's quantized weight. Here it is multiplied by ``max|w|``, a constant for the gradient: a norm behind the layer
cancels this factor, so that training is the source's; without a norm, or where the float network is trained as well,
the weight keeps its scale. Gradients pass straight through ``round``, and through ``tanh`` and its maximum.

The values are odd multiples of ``max|w| / (2^b - 1)``, those of a grid that is symmetric about 0.

Zhou et al., "DoReFa-Net", 2016; the weights that PACT was published with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssql_det.quant.affine import compute_dtype
from ssql_det.quant.quantizers.centred import straight_through
from ssql_det.quant.quantizers.quantizer import WEIGHTS, QuantizedTensor, Quantizer
from ssql_det.quant.quantizers.weight_grid import WeightGrid


@WEIGHTS.register("dorefa")
class DorefaWeight(Quantizer):
    """Per tensor: all channels have one scale. A weight of zeros stays zero."""

    def forward(self, x: Tensor, bits: int) -> Tensor:
        limited = _limit(x)
        grid = self._make_grid(x, bits)
        integers, _ = grid.round(limited.detach())
        everywhere = torch.ones((), dtype=torch.bool, device=x.device)
        return straight_through(limited, grid.dequantize(integers), everywhere).to(x.dtype)

    @torch.no_grad()
    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor:
        grid = self._make_grid(x, bits)
        return grid.to_quantized_tensor(grid.round(_limit(x))[0])

    def _make_grid(self, weight: Tensor, bits: int) -> WeightGrid:
        scale = weight.detach().to(compute_dtype(weight)).abs().amax() * (2 / (2**bits - 1))
        shape = [size if dim == self.spec.axis % weight.ndim else 1 for dim, size in enumerate(weight.shape)]
        return WeightGrid(scale.expand(shape).clone(), 0.5, bits)


def _limit(weight: Tensor) -> Tensor:
    """``tanh(weight)``, rescaled so that the largest magnitude is that of the weight."""
    limited = weight.to(compute_dtype(weight)).tanh()
    max_abs = limited.abs().amax()
    return limited / torch.where(max_abs == 0, 1, max_abs) * weight.detach().abs().amax()
