"""``mse``: the range or the scale of least error, ``sum |x - x_q| ** exponent``. ``mse:2.4`` is QDrop's exponent.

The range of an activation is searched on a histogram. The scale of a weight is searched per channel, on the published
grid from ``-2^(b-1)`` to ``2^(b-1) - 1``, which clips positive values one step earlier than negative ones. At 2 bits a
scale that clips therefore biases the weights and the network: use ``centred`` there.

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

# A bound of a range is searched among multiples of 1/20 of its largest value first, then of 1/100 around the best one.
_COARSE_PARTS, _FINE_PARTS = 20, 100
SCALE_PARTS = 100  # the scale of a weight is searched among multiples of 1/100 of the min-max scale
FakeQuantize = Callable[[Tensor, Tensor, int], Tensor]  # takes a weight, the scales of its channels, and bits


@WEIGHTS.register("mse")
class MseWeight(Quantizer):
    """Per output channel, symmetric; no gradient flows through the scale."""

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec)
        self._search = ScaleSearch(_fake_quantize, spec.axis or 0, _check_exponent(exponent))

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return fake_quantize(x, _symmetric_qparams(self._search(x, bits), bits))

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        return quantize_tensor(x.detach(), _symmetric_qparams(self._search(x, bits), bits))


@ACTIVATIONS.register("mse")
class MseActivation(RangeQuantizer):
    """Per tensor, asymmetric. Each bound lies between the observed value that is closest to 0 and the outermost one."""

    observer_class = Histogram
    observer: Histogram
    supported_bits = range(2, 11)  # the scale must be greater than the width of a bin

    def __init__(self, spec: TensorSpec, exponent: float = 2.0) -> None:
        super().__init__(spec)
        self._exponent = _check_exponent(exponent)

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        min_val, max_val = (bound.double() for bound in self.observer.range)
        edges, counts = self.observer.bins()
        values = (edges + self.observer.bin_width / 2).clamp(min_val, max_val)
        origin = min_val.new_zeros(()).clamp(min_val, max_val)

        def shrink(low_part: int, high_part: int) -> tuple[Tensor, Tensor]:
            low = origin + (min_val - origin) * low_part / _FINE_PARTS
            return low, origin + (max_val - origin) * high_part / _FINE_PARTS

        def compute_error(low_part: int, high_part: int) -> float:
            qparams = choose_qparams(*shrink(low_part, high_part), bits)
            return float((values - fake_quantize(values, qparams)).abs().pow(self._exponent) @ counts)

        def search(low_parts: range, high_parts: range) -> tuple[int, int]:
            """Of equally good ranges the widest."""
            _, low, high = min((compute_error(low, high), -low, -high) for low in low_parts for high in high_parts)
            return -low, -high

        step = _FINE_PARTS // _COARSE_PARTS
        coarse = [
            range(step, _FINE_PARTS + 1, step) if bound != origin else range(_FINE_PARTS, _FINE_PARTS + 1)
            for bound in (min_val, max_val)
        ]
        fine = (
            range(max(best - step, 1), min(best + step, _FINE_PARTS) + 1) if len(parts) > 1 else parts
            for best, parts in zip(search(*coarse), coarse, strict=True)
        )
        low, high = shrink(*search(*fine))
        return low.to(self.observer.range[0]), high.to(self.observer.range[0])


def _symmetric_qparams(scale: Tensor, bits: int) -> QParams:
    return QParams(scale, torch.zeros_like(scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _fake_quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return fake_quantize(weight, _symmetric_qparams(scale, bits))


def _check_exponent(exponent: float) -> float:
    if not 1 <= exponent <= 10:
        raise UserError(f"the exponent of mse must be 1 to 10, as in mse:2.4; got {exponent:g}")
    return exponent


class ScaleSearch:
    """Finds the scale of least error for each channel of a weight, and caches it until the weight changes.

    >>> search = ScaleSearch(_fake_quantize, axis=0, exponent=2.0)
    >>> search(torch.randn(64, 3, 7, 7), bits=2).shape
    torch.Size([64, 1, 1, 1])
    """

    def __init__(self, fake_quantize: FakeQuantize, axis: int, exponent: float) -> None:
        self._fake_quantize, self._axis, self._exponent = fake_quantize, axis, exponent
        self._cache: dict[int, tuple[tuple[int, int], Tensor]] = {}

    @torch.no_grad()
    def __call__(self, weight: Tensor, bits: int) -> Tensor:
        version = tensor_version(weight)
        if bits not in self._cache or self._cache[bits][0] != version:
            self._cache[bits] = (version, self._search(weight.detach().to(compute_dtype(weight)), bits))
        return self._cache[bits][1]

    def _search(self, weight: Tensor, bits: int) -> Tensor:
        """Of equally good scales the largest, which clips least."""
        reduced = [dim for dim in range(weight.ndim) if dim != self._axis % weight.ndim]
        max_scale = max_abs_per_channel(weight, self._axis) / ((2**bits - 1) / 2)
        best, least = max_scale, None
        for part in range(SCALE_PARTS, 0, -1):
            scale = max_scale * (part / SCALE_PARTS)
            difference = self._fake_quantize(weight, scale, bits) - weight
            error = difference.abs().pow(self._exponent).sum(reduced, keepdim=True)
            if least is None:
                least = error
                continue
            is_less = error < least
            best, least = torch.where(is_less, scale, best), torch.where(is_less, error, least)
        return best
