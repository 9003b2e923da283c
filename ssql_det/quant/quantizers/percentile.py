"""``percentile``: a range that leaves the farthest values out, as few of them as is said. ``act=percentile:99.9``."""

from __future__ import annotations

import torch
from torch import Tensor

from ssql_det.core.errors import UserError
from ssql_det.quant.quantizers.observers import Histogram
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, RangeQuantizer, TensorSpec


@ACTIVATIONS.register("percentile")
class PercentileActivation(RangeQuantizer):
    """From the ``100 - percentile``-th percentile to the ``percentile``-th, to the edges of their bins."""

    observer_class = Histogram
    observer: Histogram

    def __init__(self, spec: TensorSpec, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise UserError(f"a percentile is more than 50 and at most 100, got {percentile:g}: percentile:99.9")
        super().__init__(spec)
        self.share = percentile / 100

    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        low, high = self.observer.range
        edges, counts = self.observer.bins()
        below = counts.cumsum(0)  # values up to the end of each bin
        first = edges[(below > (1 - self.share) * below[-1]).nonzero()[0, 0]]
        last = edges[(below >= self.share * below[-1]).nonzero()[0, 0]] + self.observer.width
        return torch.maximum(first.to(low), low), torch.minimum(last.to(high), high)
