"""Observers record the range, or a histogram, of a point's activations in float passes.

Their state is tensors that can be merged: ``min_val`` by the minimum, ``max_val`` by the maximum, ``sums`` by addition.
Merging is exact and independent of order, so shards and ranks give the same state as one process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ssql_det.core.distributed import all_reduce_tensor, world_size
from ssql_det.core.errors import UserError
from ssql_det.quant.affine import compute_dtype

_FINITE, _NOT_FINITE, _NOT_OBSERVED = range(3)


class Observer(ABC):
    """``min_val`` and ``max_val`` are the least and the greatest observed value, ``None`` before the first one."""

    min_val: Tensor | None = None
    max_val: Tensor | None = None
    sums: Tensor | None = None

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Observe a tensor; an empty one changes nothing."""

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Set the range; observers with ``sums`` convert them, so that those of equal ranges can be added."""
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
        """Load a saved state; a ``ValueError`` if it is not one of an observer of this class."""
        if saved_range.dtype not in (torch.float32, torch.float64) or saved_range.shape != (2,):
            raise ValueError("the observed range is not two numbers")
        min_val, max_val = saved_range
        if not (min_val <= max_val and (max_val - min_val).isfinite()):
            raise ValueError(f"invalid observed range: from {min_val.item()} to {max_val.item()}")
        self.set_range(min_val, max_val)
        expected = None if self.sums is None else (self.sums.shape, self.sums.dtype)
        if expected != (None if sums is None else (sums.shape, sums.dtype)):
            raise ValueError("it was saved by another observer")
        self.sums = sums

    def merge(self, other: Observer) -> None:
        """Add the observations of another observer of the same class."""
        if other.min_val is None:
            return
        converted = type(self)()
        converted.set_range(*other.range)
        converted.sums = None if other.sums is None else other.sums.clone()
        self.extend_range(*converted.range)
        converted.set_range(*self.range)
        if converted.sums is not None:
            self.sums = converted.sums if self.sums is None else self.sums + converted.sums.to(self.sums.device)


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
    """Counts in ``BINS`` bins, half of them below 0, of the smallest power-of-two width that covers all values.

    An edge of the bins is always at 0. When a value lies beyond the bins, their width is doubled and pairs of bins are
    added, which gives the counts that bins of the new width would have had from the start. Memory is constant.

    >>> histogram = Histogram()
    >>> histogram.update(torch.tensor([0.1, -3.0, 5.0]))
    >>> histogram.bin_width, int(histogram.sums.sum())
    (0.001953125, 3)
    """

    BINS = 8192
    _MIN_EXPONENT = -120  # of the largest magnitude
    _CHUNK = 1 << 20  # elements at a time, because indices take eight bytes each

    _exponent = _MIN_EXPONENT - BINS.bit_length() + 2

    @property
    def bin_width(self) -> float:
        return math.ldexp(1.0, self._exponent)

    def update(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        min_val, max_val = _compute_range(x)
        self.extend_range(min_val, max_val)
        if not (max_val - min_val).isfinite():
            return  # it fits no bins; ``check_finite`` raises the error, with the name of the point
        assert self.sums is not None
        for chunk in x.detach().flatten().split(self._CHUNK):
            indices = torch.floor(chunk.double() / self.bin_width).long() + self.BINS // 2
            self.sums += torch.bincount(indices, minlength=self.BINS)

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        super().set_range(min_val, max_val)
        max_abs = float(torch.maximum(-min_val, max_val))
        previous, self._exponent = self._exponent, self._choose_exponent(max_abs)
        if self.sums is None:
            self.sums = torch.zeros(self.BINS, dtype=torch.int64, device=min_val.device)
        elif self._exponent > previous:
            half = self.BINS // 2
            indices = (torch.arange(-half, half, device=self.sums.device) >> min(self._exponent - previous, 62)) + half
            self.sums = torch.zeros_like(self.sums).index_add_(0, indices, self.sums)

    def restore(self, saved_range: Tensor, sums: Tensor | None) -> None:
        super().restore(saved_range, sums)
        if sums is not None and (sums < 0).any():
            raise ValueError("the histogram has negative counts")

    def bins(self) -> tuple[Tensor, Tensor]:
        """The lower edges of the bins that are not empty, and their counts, both in float64."""
        assert self.sums is not None
        indices = self.sums.nonzero().flatten()
        return (indices - self.BINS // 2).double() * self.bin_width, self.sums[indices].double()

    def _choose_exponent(self, max_abs: float) -> int:
        """The least exponent for which bins of width ``2 ** exponent`` cover ``-max_abs`` to ``max_abs``."""
        exponent = math.frexp(max_abs)[1] if 0 < max_abs < math.inf else self._MIN_EXPONENT
        return max(exponent, self._MIN_EXPONENT) - self.BINS.bit_length() + 2


def all_reduce_observers(observers: Collection[Observer], device: torch.device) -> None:
    """Merge the observers of all ranks, in one collective for the ranges, and one more if any has ``sums``.

    A range that a rank has not observed takes part as one from inf to -inf.
    """
    if world_size() == 1 or not observers:
        return
    dtype = next((each.min_val.dtype for each in observers if each.min_val is not None), torch.float32)
    inf = torch.tensor(torch.inf, dtype=torch.float64, device=device)
    min_vals = torch.stack([inf if each.min_val is None else each.min_val.to(inf) for each in observers])
    max_vals = torch.stack([-inf if each.max_val is None else each.max_val.to(inf) for each in observers])
    # A maximum may drop a NaN, so NaN becomes inf, which is an error as well.
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

    All points are read in one transfer, because each one waits for the GPU. Ranges from inf to -inf become ``None``.
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
    min_val, max_val = x.detach().aminmax()
    if min_val.dtype not in (torch.float32, torch.float64):
        min_val, max_val = min_val.to(compute_dtype(x)), max_val.to(compute_dtype(x))
    return min_val, max_val
