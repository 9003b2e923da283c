"""``SoftRounding``: a weight whose rounding, up or down, is being learned (AdaRound, eqs. 22 to 24 of the source).

::

    h(v)           = clamp(sigmoid(v) * 1.2 - 0.1, 0, 1)
    soft weight    = (clamp(floor(w / s - offset) + h(v), qmin, qmax) + offset) * s
    regularization = sum(1 - |2 h(v) - 1| ** beta)

``s``, the offset and the bounds are those of a ``WeightGrid``, that of ``mse`` (offset 0) or of ``centred`` (1/2).

Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssql_det.quant.quantizers.quantizer import QuantizedTensor, Quantizer, TensorSpec
from ssql_det.quant.quantizers.weight_grid import WeightGrid

_STRETCH, _SHIFT = 1.2, -0.1  # zeta - gamma and gamma of the source: h reaches 0 and 1 at a finite v


class SoftRounding(Quantizer):
    """Inside the grid, the soft weight is at first the float weight. ``v`` is trained; ``harden`` gives the integers
    that the weight is rounded to after the training.

    Gradients reach ``v``, not the weight. Elements beyond the grid stay at its ends.

    >>> from ssql_det.quant import QuantPoint, Side
    >>> from ssql_det.quant.quantizers.mse import MseWeight
    >>> weight = torch.tensor([[0.3, -0.8, 0.52]])
    >>> spec = TensorSpec(QuantPoint("fc", Side.WEIGHT), shape=(1, 3))
    >>> rounding = SoftRounding(spec, weight, MseWeight(spec).choose_grid(weight, bits=4))
    >>> torch.allclose(rounding(weight, bits=4), weight)
    True
    >>> rounding.harden().integers
    tensor([[ 3, -8,  5]], dtype=torch.int8)
    """

    floors: Tensor
    scale: Tensor

    def __init__(self, spec: TensorSpec, weight: Tensor, grid: WeightGrid) -> None:
        super().__init__(spec)
        self._offset, self._bits = grid.offset, grid.bits
        ratio = grid.divide(weight.detach())
        floors = torch.floor(ratio)
        # A channel of zeros is on the grid; with h = 1/2, where the regularization is flat, h would never reach 0 or 1.
        h = torch.where(grid.scale == 0, 0, ratio - floors)
        # The inverse of h, whose sign is exact: rounding up is v >= 0.
        self.v = nn.Parameter(2 * torch.atanh((h - 0.5) / (_STRETCH / 2)))
        self.register_buffer("floors", floors)
        self.register_buffer("scale", grid.scale.detach().clone())

    @property
    def grid(self) -> WeightGrid:
        return WeightGrid(self.scale, self._offset, self._bits)

    def compute_h(self) -> Tensor:
        """How far each element is rounded up, from 0 to 1."""
        return _clamp(torch.sigmoid(self.v) * _STRETCH + _SHIFT, 0, 1)

    def regularization(self, beta: float) -> Tensor:
        """0 where all ``h`` are 0 or 1. A large ``beta`` pushes only those near 0 or 1, a small one pushes all."""
        return (1 - (2 * self.compute_h() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def harden(self) -> QuantizedTensor:
        """The integers with ``h`` rounded, 1/2 upwards."""
        grid = self.grid
        return grid.to_quantized_tensor((self.floors + (self.v >= 0)).clamp(grid.qmin, grid.qmax))

    def forward(self, x: Tensor, bits: int) -> Tensor:
        self._check_bits(bits)
        grid = self.grid
        return grid.dequantize(_clamp(self.floors + self.compute_h(), grid.qmin, grid.qmax)).to(x.dtype)

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor:
        """The integers of ``harden``, whatever ``x`` is."""
        self._check_bits(bits)
        return self.harden()

    def _check_bits(self, bits: int) -> None:
        if bits != self._bits:
            raise ValueError(f"the rounding of {self.spec.point.key} is learned for {self._bits} bits, not {bits}")


def _clamp(x: Tensor, low: float, high: float) -> Tensor:
    """``clamp`` whose gradient at the bounds is 1 in every version of torch."""
    clamped = x.detach().clamp(low, high)
    return torch.where(clamped == x, x, clamped)
