"""``mse``: the range or the scale of the least error, ``sum |x - x_q| ** exponent``. ``mse:2.4`` has QDrop's exponent.

Activations are searched on a histogram. A weight is searched channel by channel, on the published grid: from
``-2^(b-1)`` to ``2^(b-1) - 1``, which clips the positive side by one step more than the negative. At 2 bits a scale
that clips makes such a grid biased, and the network with it: there ``centred`` is the one to use.

QDrop: Wei et al., ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssql_det.core.errors import UserError
from ssql_det.quant.affine import (
    QParams,
    choose_qparams,
    compute_dtype,
    fake_quantize,
    max_abs_per_channel,
    tensor_version,
)
from ssql_det.quant.quantizers.observers import Histogram
from ssql_det.quant.quantizers.quantizer import (
    ACTIVATIONS,
    WEIGHTS,
    QuantizedTensor,
    Quantizer,
    RangeQuantizer,
    TensorSpec,
    quantize_tensor,
)

_COARSE, _FINE = 20, 100  # parts of an end: searched on the whole first, then about the best
PARTS = 100
OnGrid = Callable[[Tensor, Tensor, int], Tensor]  # of a weight, the scales of its channels, and bits


@WEIGHTS.register("mse")
class MseWeight(Quantizer):
    """Per output channel, symmetric; the scale is a constant for gradients."""

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec)
        self._search = ScaleSearch(_on_grid, spec.axis or 0, _checked(exponent))

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return fake_quantize(x, _grid(self._search(x, bits), bits))

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        return quantize_tensor(x.detach(), _grid(self._search(x, bits), bits))


@ACTIVATIONS.register("mse")
class MseActivation(RangeQuantizer):
    """Per tensor, asymmetric. An end lies between 0, or what is nearest to it, and the farthest value on its side."""

    observer_class = Histogram
    observer: Histogram
    supported_bits = range(2, 11)  # a step has to be wider than a bin

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec)
        self._exponent = _checked(exponent)

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        low, high = (end.double() for end in self.observer.range)
        edges, counts = self.observer.bins()
        values = (edges + self.observer.width / 2).clamp(low, high)
        nearest = low.new_zeros(()).clamp(low, high)

        def error(lows: int, highs: int) -> float:
            grid = choose_qparams(*self._ends(low, high, nearest, lows, highs), bits)
            return float((values - fake_quantize(values, grid)).abs().pow(self._exponent) @ counts)

        step = _FINE // _COARSE
        lows, highs = (
            range(step, _FINE + 1, step) if end != nearest else range(_FINE, _FINE + 1) for end in (low, high)
        )
        best = min((error(a, b), -a, -b) for a in lows for b in highs)
        fine_lows, fine_highs = (
            range(max(-place - step, 1), min(-place + step, _FINE) + 1) if len(among) > 1 else among
            for place, among in zip(best[1:], (lows, highs), strict=True)
        )
        _, a, b = min((error(a, b), -a, -b) for a in fine_lows for b in fine_highs)
        found = self._ends(low, high, nearest, -a, -b)
        return found[0].to(self.observer.range[0]), found[1].to(self.observer.range[0])

    @staticmethod
    def _ends(low: Tensor, high: Tensor, nearest: Tensor, lows: int, highs: int) -> tuple[Tensor, Tensor]:
        return nearest + (low - nearest) * lows / _FINE, nearest + (high - nearest) * highs / _FINE


def _grid(scale: Tensor, bits: int) -> QParams:
    return QParams(scale, torch.zeros_like(scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _on_grid(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return fake_quantize(weight, _grid(scale, bits))


def _checked(exponent: float) -> float:
    if not 1 <= exponent <= 10:
        raise UserError(f"the exponent of an error is 1 to 10, got {exponent:g}: mse:2.4")
    return exponent


class ScaleSearch:
    """Searched once for a weight and a width: as long as the weight is what it was, the answer is kept.

    >>> search = ScaleSearch(on_grid, axis=0, exponent=2.0)
    >>> search(conv.weight, bits=2).shape
    torch.Size([64, 1, 1, 1])
    """

    def __init__(self, on_grid: OnGrid, axis: int, exponent: float) -> None:
        self._on_grid, self._axis, self._exponent = on_grid, axis, exponent
        self._found: dict[int, tuple[tuple[int, int], Tensor]] = {}

    @torch.no_grad()
    def __call__(self, weight: Tensor, bits: int) -> Tensor:
        version = tensor_version(weight)
        if bits not in self._found or self._found[bits][0] != version:
            self._found[bits] = (version, self._search(weight.detach().to(compute_dtype(weight)), bits))
        return self._found[bits][1]

    def _search(self, weight: Tensor, bits: int) -> Tensor:
        """Of equally good ones the largest, which clips least."""
        others = [dim for dim in range(weight.ndim) if dim != self._axis % weight.ndim]
        whole = max_abs_per_channel(weight, self._axis) / ((2**bits - 1) / 2)
        best, least = whole, None
        for part in range(PARTS, 0, -1):
            scale = whole * (part / PARTS)
            error = (self._on_grid(weight, scale, bits) - weight).abs().pow(self._exponent).sum(others, keepdim=True)
            if least is None:
                least = error
                continue
            is_less = error < least
            best, least = torch.where(is_less, scale, best), torch.where(is_less, error, least)
        return best
