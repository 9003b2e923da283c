"""``percentile``: a range that leaves the farthest values out, as few of them as is said. ``act=percentile:99.9``."""

from __future__ import annotations

import torch
from torch import Tensor

from ssql_det.core.errors import UserError
from ssql_det.quant.quantizers.observers import Histogram
from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, Place, RangeQuantizer


@ACTIVATIONS.register("percentile")
class PercentileActivation(RangeQuantizer):
    """From the ``100 - percentile``-th percentile to the ``percentile``-th, to the edges of their bins."""

    observe_with = Histogram
    observer: Histogram

    def __init__(self, place: Place, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise UserError(f"a percentile is more than 50 and at most 100, got {percentile:g}: percentile:99.9")
        super().__init__(place)
        self.share = percentile / 100

    def range(self, bits: int) -> tuple[Tensor, Tensor]:
        low, high = self.observer.ends
        edges, counts = self.observer.bins()
        below = counts.cumsum(0)  # values up to the end of each bin
        first = edges[(below > (1 - self.share) * below[-1]).nonzero()[0, 0]]
        last = edges[(below >= self.share * below[-1]).nonzero()[0, 0]] + self.observer.width
        return torch.maximum(first.to(low), low), torch.minimum(last.to(high), high)
