"""``WeightGrid``: the values ``(q + offset) * scale`` that the elements of a weight may take at one bit-width.

======================= ====== ================================================
quantizer               offset values at 2 bits
======================= ====== ================================================
``mse``                 0      -2, -1, 0, 1, times the scale of the channel
``centred``, ``dorefa`` 1/2    -3/2, -1/2, 1/2, 3/2, times the scale
======================= ====== ================================================
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ssql_det.quant.quantizers.quantizer import QuantizedTensor, Quantizer, smallest_int_dtype


@dataclass(frozen=True)
class WeightGrid:
    """``scale`` is per channel, in a shape that broadcasts to the weight; ``offset`` is 0 or 1/2.

    >>> grid = WeightGrid(torch.tensor([[2.0]]), offset=0.5, bits=2)
    >>> grid.round(torch.tensor([[-0.3, 1.1, 9.0]]))
    (tensor([[-1.,  0.,  1.]]), tensor([[ True,  True, False]]))
    >>> grid.dequantize(torch.arange(grid.qmin, grid.qmax + 1))
    tensor([[-3., -1.,  1.,  3.]])
    """

    scale: Tensor
    offset: float
    bits: int

    @property
    def qmin(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def divide(self, weight: Tensor) -> Tensor:
        """``weight`` in units of the grid, ``weight / scale - offset``, neither rounded nor clamped; where the scale is
        0 it counts as 1."""
        return weight.to(self.scale.dtype) / torch.where(self.scale == 0, 1, self.scale) - self.offset

    def round(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integers ``q`` of the nearest values, and a mask of the integers that were not clamped."""
        rounded = torch.round(self.divide(weight))
        integers = rounded.clamp(self.qmin, self.qmax)
        return integers, integers == rounded

    def dequantize(self, integers: Tensor) -> Tensor:
        return (integers + self.offset) * self.scale

    def to_quantized_tensor(self, integers: Tensor) -> QuantizedTensor:
        """Store integers ``q``; with the offset 1/2 as the odd integers ``2q + 1`` with scale ``scale / 2``."""
        zero_point = torch.zeros_like(self.scale)
        if self.offset == 0:
            return QuantizedTensor(integers.to(smallest_int_dtype(self.qmin, self.qmax)), self.scale, zero_point)
        dtype = smallest_int_dtype(2 * self.qmin + 1, 2 * self.qmax + 1)
        return QuantizedTensor((2 * integers + 1).to(dtype), self.scale / 2, zero_point)


class GridQuantizer(Quantizer):
    """A weight quantizer that chooses a grid for a weight, and rounds each element to the nearest value."""

    @abstractmethod
    def choose_grid(self, weight: Tensor, bits: int) -> WeightGrid:
        """Choose the grid; no gradient flows through its scale."""

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor:
        grid = self.choose_grid(x, bits)
        return grid.to_quantized_tensor(grid.round(x.detach())[0])
