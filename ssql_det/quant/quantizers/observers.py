"""Observers record the range, or a histogram, of the activations at a point, in float forward passes.

Observers can be merged: ``min_val`` by the minimum, ``max_val`` by the maximum, ``sums`` (such as the counts of a
histogram) by addition. Merging is exact and independent of order, so shards and ranks give the same state as one
process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ssql_det.core.distributed import all_reduce_tensor, world_size
from ssql_det.core.errors import UserError
from ssql_det.quant.affine import compute_dtype, in_memory_order

_FINITE, _NOT_FINITE, _NOT_OBSERVED = range(3)  # states of an observed range


class Observer(ABC):
    """``min_val`` and ``max_val`` are the least and the greatest observed value, ``None`` before the first value.

    ``sums`` are statistics that can be added, such as the counts of a histogram; ``None`` if there are none.
    """

    min_val: Tensor | None = None
    max_val: Tensor | None = None
    sums: Tensor | None = None

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Observe a tensor; an empty one changes nothing."""

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Set the range. A histogram is rebinned to it: histograms of equal range have equal bins and can be added."""
        self.min_val, self.max_val = min_val, max_val

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest observed value."""
        if self.min_val is None or self.max_val is None:
            raise ValueError("nothing was observed")
        return self.min_val, self.max_val

    def extend_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Extend the range to include these values."""
        if self.min_val is not None and self.max_val is not None:
            min_val = torch.minimum(self.min_val, min_val.to(self.min_val.device))
            max_val = torch.maximum(self.max_val, max_val.to(self.max_val.device))
        self.set_range(min_val, max_val)

    def restore(self, saved_range: Tensor, sums: Tensor | None) -> None:
        """Load a saved state; raise a ``ValueError`` if it is invalid or of a different type of observer."""
        if saved_range.dtype not in (torch.float32, torch.float64) or saved_range.shape != (2,):
            raise ValueError("the observed range is not a pair of floats")
        min_val, max_val = saved_range
        if not (min_val <= max_val and (max_val - min_val).isfinite()):
            raise ValueError(f"invalid observed range: from {min_val.item()} to {max_val.item()}")
        self.set_range(min_val, max_val)
        expected = None if self.sums is None else (self.sums.shape, self.sums.dtype)
        if expected != (None if sums is None else (sums.shape, sums.dtype)):
            raise ValueError("it was saved by a different type of observer")
        self.sums = sums

    def merge(self, other: Observer) -> None:
        """Add the observations of another observer of the same class."""
        if other.min_val is None:
            return
        addend = type(self)()  # a copy of the other observer, set to the merged range
        addend.set_range(*other.range)
        addend.sums = None if other.sums is None else other.sums.clone()
        self.extend_range(*addend.range)
        addend.set_range(*self.range)
        if addend.sums is not None:
            self.sums = addend.sums if self.sums is None else self.sums + addend.sums.to(self.sums.device)


class MinMaxObserver(Observer):
    """The least and the greatest value.

    >>> observer = MinMaxObserver()
    >>> observer.update(torch.tensor([1.0, -2.0])); observer.update(torch.tensor([3.0]))
    >>> observer.range
    (tensor(-2.), tensor(3.))
    """

    def update(self, x: Tensor) -> None:
        if x.numel():
            self.extend_range(*_compute_range(x))


class Histogram(Observer):
    """Counts, in ``sums``, of values in ``BINS`` bins, half of which lie below 0.

    The width of a bin is the smallest power of two for which the bins cover all values. When a value lies outside, the
    width is doubled and neighbouring bins are added in pairs, which gives the counts that wider bins would have had
    from the start. Memory is constant.

    >>> histogram = Histogram()
    >>> histogram.update(torch.tensor([0.1, -3.0, 5.0]))
    >>> histogram.bin_width, int(histogram.sums.sum())
    (0.001953125, 3)
    """

    BINS = 8192
    _LOG2_HALF_BINS = (BINS // 2).bit_length() - 1  # of the number of bins on each side of 0
    _MIN_RANGE_EXPONENT = -120  # the bins cover at least -2^-120 to 2^-120, also if all values are 0
    _CHUNK = 1 << 20  # elements counted at a time: the index of each takes eight bytes

    _bin_exponent = _MIN_RANGE_EXPONENT - _LOG2_HALF_BINS  # a bin is 2 ** _bin_exponent wide

    @property
    def bin_width(self) -> float:
        return math.ldexp(1.0, self._bin_exponent)

    def update(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        min_val, max_val = _compute_range(x)
        self.extend_range(min_val, max_val)
        if not (max_val - min_val).isfinite():
            return  # no bins cover an infinite range; ``check_finite`` raises an error that names the point
        assert self.sums is not None
        for chunk in x.detach().flatten().split(self._CHUNK):
            indices = torch.floor(chunk.double() / self.bin_width).long() + self.BINS // 2
            self.sums += torch.bincount(indices, minlength=self.BINS)

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        super().set_range(min_val, max_val)
        max_abs = float(torch.maximum(-min_val, max_val))
        previous, self._bin_exponent = self._bin_exponent, self._choose_bin_exponent(max_abs)
        if self.sums is None:
            self.sums = torch.zeros(self.BINS, dtype=torch.int64, device=min_val.device)
        elif self._bin_exponent > previous:
            half = self.BINS // 2
            # Larger shifts than 62, which int64 may not support, would give the same indices.
            indices = (
                torch.arange(-half, half, device=self.sums.device) >> min(self._bin_exponent - previous, 62)
            ) + half
            self.sums = torch.zeros_like(self.sums).index_add_(0, indices, self.sums)

    def restore(self, saved_range: Tensor, sums: Tensor | None) -> None:
        super().restore(saved_range, sums)
        if sums is not None and (sums < 0).any():
            raise ValueError("the histogram has negative counts")

    def nonempty_bins(self) -> tuple[Tensor, Tensor]:
        """The lower edges of the bins that are not empty, and their counts, both in float64."""
        assert self.sums is not None
        indices = self.sums.nonzero().flatten()
        return (indices - self.BINS // 2).double() * self.bin_width, self.sums[indices].double()

    def _choose_bin_exponent(self, max_abs: float) -> int:
        """The least exponent for which bins of width ``2 ** exponent`` cover ``-max_abs`` to ``max_abs``."""
        range_exponent = math.frexp(max_abs)[1] if 0 < max_abs < math.inf else self._MIN_RANGE_EXPONENT
        return max(range_exponent, self._MIN_RANGE_EXPONENT) - self._LOG2_HALF_BINS


def all_reduce_observers(observers: Collection[Observer], device: torch.device) -> None:
    """Merge the observers of all ranks, in one collective for the ranges, and one for ``sums`` if there are any.

    For a point at which a rank observed nothing, the rank passes the range from inf to -inf.
    """
    if world_size() == 1 or not observers:
        return
    dtype = next((each.min_val.dtype for each in observers if each.min_val is not None), torch.float32)
    inf = torch.tensor(torch.inf, dtype=torch.float64, device=device)
    min_vals = torch.stack([inf if each.min_val is None else each.min_val.to(inf) for each in observers])
    max_vals = torch.stack([-inf if each.max_val is None else each.max_val.to(inf) for each in observers])
    # The maximum over ranks may drop NaN, so NaN becomes inf, for which ``check_finite`` raises an error too.
    ranges = torch.stack((-min_vals, max_vals)).nan_to_num(nan=torch.inf, neginf=-torch.inf)
    merged = all_reduce_tensor(ranges, "max").to(dtype)
    for observer, min_val, max_val in zip(observers, -merged[0], merged[1], strict=True):
        observer.set_range(min_val, max_val)
    sums = {each: each.sums for each in observers if each.sums is not None}
    if sums:
        total = all_reduce_tensor(torch.cat([*sums.values()]), "sum")
        for observer, part in zip(sums, total.split([len(each) for each in sums.values()]), strict=True):
            observer.sums = part.clone()


def check_finite(observers: Mapping[str, Observer]) -> None:
    """Raise an error that names the first point with NaN, infinity or a range too wide for its type.

    ``observers`` are by the keys of their points. All points are read in one transfer, because each transfer waits for
    the GPU. A range from inf to -inf, which no rank observed, becomes ``None``.
    """
    ranges = {key: each.range for key, each in observers.items() if each.min_val is not None}
    if not ranges:
        return
    first, _ = next(iter(ranges.values()))
    min_vals = torch.stack([min_val.to(first) for min_val, _ in ranges.values()])
    max_vals = torch.stack([max_val.to(first) for _, max_val in ranges.values()])
    spans = max_vals - min_vals
    states = torch.where(spans == -torch.inf, _NOT_OBSERVED, torch.where(spans.isfinite(), _FINITE, _NOT_FINITE))
    for key, state in zip(ranges, states.tolist(), strict=True):
        if state == _NOT_FINITE:
            raise UserError(
                f"NaN or infinite values at {key}; check the images' normalization and that the weights are finite"
            )
        if state == _NOT_OBSERVED:
            observers[key].min_val = observers[key].max_val = observers[key].sums = None


def _compute_range(x: Tensor) -> tuple[Tensor, Tensor]:
    min_val, max_val = in_memory_order(x.detach()).aminmax()
    if min_val.dtype not in (torch.float32, torch.float64):
        min_val, max_val = min_val.to(compute_dtype(x)), max_val.to(compute_dtype(x))
    return min_val, max_val
