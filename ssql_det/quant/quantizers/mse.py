"""``mse``: the range or the scale of least error, ``sum |x - x_q| ** exponent``; ``mse:2.4`` has QDrop's exponent.

The range of an activation is searched on a histogram, the scale of a weight per channel. The integers of a weight are
``-2^(b-1)`` to ``2^(b-1) - 1`` at ``b`` bits, as published for SSQL, so positive values are clipped one step earlier
than negative ones. At 2 bits a scale that clips therefore shifts the mean of the weights and so the network's outputs:
use the weight quantizer ``centred`` there.

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
)
from ssql_det.quant.quantizers.observers import Histogram
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, WEIGHTS, RangeQuantizer, TensorSpec
from ssql_det.quant.quantizers.weight_grid import GridQuantizer, WeightGrid
from ssql_det.quant.tensor_cache import TensorCache

# A bound of a range is searched among multiples of 1/20 of the observed bound, then of 1/100 near the best one.
_COARSE_STEPS, _FINE_STEPS = 20, 100
_SCALE_STEPS = 100  # the scale of a weight is searched among multiples of 1/100 of the min-max scale
FakeQuantize = Callable[[Tensor, Tensor, int], Tensor]  # takes a weight, the scales of its channels and the bit-width


@WEIGHTS.register("mse")
class MseWeight(GridQuantizer):
    """Per output channel, symmetric; no gradient flows through the scale."""

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec)
        self._search = ScaleSearch(_fake_quantize, spec.axis, check_exponent(exponent, "mse"))

    def choose_grid(self, weight: Tensor, bits: int) -> WeightGrid:
        return WeightGrid(self._search(weight, bits), 0.0, bits)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return _fake_quantize(x, self._search(x, bits), bits)


@ACTIVATIONS.register("mse")
class MseActivation(RangeQuantizer):
    """Per tensor, asymmetric. The lower bound is searched between the observed minimum and 0, the upper bound between 0
    and the observed maximum. If 0 is outside of the observed range, the bound closest to it takes its place."""

    observer_class = Histogram
    observer: Histogram
    supported_bits = range(2, 11)  # with more bits the scale could be smaller than a bin of the histogram

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec)
        self._exponent = check_exponent(exponent, "mse")

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        return search_range(self.observer, bits, self._exponent)


def search_range(observer: Histogram, bits: int, exponent: float) -> tuple[Tensor, Tensor]:
    """The bounds of least error at a bit-width, for the values in a histogram."""
    min_val, max_val = (bound.double() for bound in observer.range)
    edges, counts = observer.nonempty_bins()
    values = (edges + observer.bin_width / 2).clamp(min_val, max_val)
    # 0, or the observed bound closest to it if the range does not include 0
    origin = min_val.new_zeros(()).clamp(min_val, max_val)

    def shrink(low_step: int, high_step: int) -> tuple[Tensor, Tensor]:
        """The bounds so many hundredths (fine steps) of the way from ``origin`` to the observed bounds."""
        low = origin + (min_val - origin) * low_step / _FINE_STEPS
        return low, origin + (max_val - origin) * high_step / _FINE_STEPS

    def compute_error(low_step: int, high_step: int) -> float:
        qparams = choose_qparams(*shrink(low_step, high_step), bits)
        return float((values - fake_quantize(values, qparams)).abs().pow(exponent) @ counts)

    def search(low_candidates: range, high_candidates: range) -> tuple[int, int]:
        """Find the bounds of least error, in steps of ``shrink``; of equally good ranges the widest."""
        _, negative_low, negative_high = min(
            (compute_error(low, high), -low, -high) for low in low_candidates for high in high_candidates
        )
        return -negative_low, -negative_high

    stride = _FINE_STEPS // _COARSE_STEPS
    coarse = [
        range(stride, _FINE_STEPS + 1, stride) if bound != origin else range(_FINE_STEPS, _FINE_STEPS + 1)
        for bound in (min_val, max_val)
    ]
    fine = (
        range(max(best - stride, 1), min(best + stride, _FINE_STEPS) + 1) if len(candidates) > 1 else candidates
        for best, candidates in zip(search(*coarse), coarse, strict=True)
    )
    low, high = shrink(*search(*fine))
    return low.to(observer.range[0]), high.to(observer.range[0])


def _fake_quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """By ``affine.fake_quantize``, which has a kernel; the values are those of a ``WeightGrid`` with offset 0."""
    return fake_quantize(weight, QParams(scale, torch.zeros_like(scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def check_exponent(exponent: float, name: str) -> float:
    if not 1 <= exponent <= 10:
        raise UserError(f"the exponent of {name} must be 1 to 10, as in {name}:2.4; got {exponent:g}")
    return exponent


class ScaleSearch:
    """Finds the scale of least error for each channel of a weight, and caches it until the weight changes.

    >>> search = ScaleSearch(_fake_quantize, axis=0, exponent=2.0)
    >>> search(torch.randn(64, 3, 7, 7), bits=2).shape
    torch.Size([64, 1, 1, 1])
    """

    def __init__(self, fake_quantize: FakeQuantize, axis: int, exponent: float) -> None:
        self._fake_quantize, self._axis, self._exponent = fake_quantize, axis, exponent
        self._cache: TensorCache[Tensor] = TensorCache()

    @torch.no_grad()
    def __call__(self, weight: Tensor, bits: int) -> Tensor:
        return self._cache.get(weight, bits, lambda: self._search(weight.detach().to(compute_dtype(weight)), bits))

    def _search(self, weight: Tensor, bits: int) -> Tensor:
        """Find the scale of least error per channel; of equally good scales the largest, which clips least."""
        reduced = [dim for dim in range(weight.ndim) if dim != self._axis % weight.ndim]
        max_abs = max_abs_per_channel(weight, self._axis)
        max_scale = choose_qparams(-max_abs, max_abs, bits, symmetric=True).scale
        best_scale, least_error = max_scale, None
        for step in range(_SCALE_STEPS, 0, -1):
            scale = max_scale * (step / _SCALE_STEPS)
            difference = self._fake_quantize(weight, scale, bits) - weight
            error = difference.abs().pow(self._exponent).sum(reduced, keepdim=True)
            if least_error is None:
                least_error = error
                continue
            is_less = error < least_error
            best_scale = torch.where(is_less, scale, best_scale)
            least_error = torch.where(is_less, error, least_error)
        return best_scale
