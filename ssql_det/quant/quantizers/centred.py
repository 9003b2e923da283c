"""``centred``: weights on a grid that is symmetric about 0 and does not contain 0.

``w_q = (q + 1/2) * s`` with ``q = clamp(round(w / s - 1/2), -2^(b-1), 2^(b-1) - 1)`` and the scale ``s`` of least
squared error per output channel, at ``b`` bits. The grid reaches equally far on both sides, so clipping does not shift
the mean of the weights. The odd integers ``2q + 1`` are stored with scale ``s / 2``; they fit into int8 up to 7 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssql_det.quant.quantizers.mse import ScaleSearch
from ssql_det.quant.quantizers.quantizer import WEIGHTS, TensorSpec
from ssql_det.quant.quantizers.weight_grid import GridQuantizer, WeightGrid


@WEIGHTS.register("centred")
class CentredWeight(GridQuantizer):
    """Per output channel. A channel of zeros stays zero; no gradient flows through the scale."""

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self._search = ScaleSearch(_fake_quantize, spec.axis, exponent=2.0)

    def choose_grid(self, weight: Tensor, bits: int) -> WeightGrid:
        return WeightGrid(self._search(weight, bits), 0.5, bits)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        grid = self.choose_grid(x, bits)
        integers, in_range = grid.round(x.detach())
        return straight_through(x, grid.dequantize(integers), in_range)


def _fake_quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    grid = WeightGrid(scale, 0.5, bits)
    return grid.dequantize(grid.round(weight)[0])


def straight_through(x: Tensor, quantized: Tensor, mask: Tensor) -> Tensor:
    """Return ``quantized``; gradients pass to ``x`` where ``mask`` is true.

    >>> x = torch.tensor([0.4, 9.0], requires_grad=True)
    >>> straight_through(x, torch.tensor([0.5, 1.5]), torch.tensor([True, False])).sum().backward()
    >>> x.grad
    tensor([1., 0.])
    """
    output: Tensor = _StraightThrough.apply(x, quantized, mask)
    return output


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return quantized.to(x.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.where(ctx.saved_tensors[0], grad, 0), None, None
