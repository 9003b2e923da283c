"""``percentile``: a range without the outermost values; ``act=percentile:99.9`` leaves out 0.1 % at either end."""

from __future__ import annotations

import torch
from torch import Tensor

from ssql_det.core.errors import UserError
from ssql_det.quant.quantizers.observers import Histogram
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, RangeQuantizer, TensorSpec


@ACTIVATIONS.register("percentile")
class PercentileActivation(RangeQuantizer):
    """From the ``100 - percentile``-th to the ``percentile``-th percentile, each extended outwards to a bin's edge."""

    observer_class = Histogram
    observer: Histogram

    def __init__(self, spec: TensorSpec, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise UserError(
                f"a percentile must be greater than 50 and at most 100, as in percentile:99.9; got {percentile:g}"
            )
        super().__init__(spec)
        self._quantile = percentile / 100

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        min_val, max_val = self.observer.range
        edges, counts = self.observer.nonempty_bins()
        cumulative = counts.cumsum(0)
        low = edges[(cumulative > (1 - self._quantile) * cumulative[-1]).nonzero()[0, 0]]
        high = edges[(cumulative >= self._quantile * cumulative[-1]).nonzero()[0, 0]] + self.observer.bin_width
        return torch.maximum(low.to(min_val), min_val), torch.minimum(high.to(max_val), max_val)
