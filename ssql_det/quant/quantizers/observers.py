"""Observers watch a point's activations in float passes; what they hold is tensors, so that they merge by tensors.

``low`` is merged by the lesser, ``high`` by the greater, ``sums`` by adding up. Merging is exact and in any order:
shards and ranks give what one stream would have given.
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

_FINE, _ENDLESS, _UNREACHED = range(3)


class Observer(ABC):
    """``low`` and ``high`` are the ends of what was observed; they are ``None`` while nothing was."""

    min_val: Tensor | None = None
    max_val: Tensor | None = None
    sums: Tensor | None = None

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Take in a tensor; an empty one changes nothing."""

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take over the ends of several observers, so that ``sums`` are of their kind and can be added up."""
        self.min_val, self.max_val = low, high

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest value observed."""
        if self.min_val is None or self.max_val is None:
            raise ValueError("nothing was observed")
        return self.min_val, self.max_val

    def extend_range(self, low: Tensor, high: Tensor) -> None:
        """Take in values from ``low`` to ``high``."""
        if self.min_val is not None and self.max_val is not None:
            low = torch.minimum(self.min_val, low.to(self.min_val.device))
            high = torch.maximum(self.max_val, high.to(self.max_val.device))
        self.set_range(low, high)

    def restore(self, ends: Tensor, sums: Tensor | None) -> None:
        """Become what was saved; a ``ValueError`` if no observer of this kind can have held it."""
        if ends.dtype not in (torch.float32, torch.float64) or ends.shape != (2,):
            raise ValueError("its ends are no two numbers")
        low, high = ends
        if not (low <= high and (high - low).isfinite()):
            raise ValueError(f"it goes from {low.item()} to {high.item()}")
        self.set_range(low, high)
        kind = None if self.sums is None else (self.sums.shape, self.sums.dtype)
        if kind != (None if sums is None else (sums.shape, sums.dtype)):
            raise ValueError("it is of another observer")
        self.sums = sums

    def merge(self, other: Observer) -> None:
        """Become the observer of both streams."""
        if other.min_val is None:
            return
        theirs = type(self)()
        theirs.set_range(*other.range)
        theirs.sums = None if other.sums is None else other.sums.clone()
        self.extend_range(*theirs.range)
        theirs.set_range(*self.range)
        if theirs.sums is not None:
            self.sums = theirs.sums if self.sums is None else self.sums + theirs.sums.to(self.sums.device)


class MinMaxObserver(Observer):
    """The least and the greatest value.

    >>> observer = MinMaxObserver()
    >>> observer.update(torch.tensor([1.0, -2.0])); observer.update(torch.tensor([3.0]))
    >>> observer.range
    (tensor(-2.), tensor(3.))
    """

    def update(self, x: Tensor) -> None:
        if x.numel():
            self.extend_range(*_ends(x))


class Histogram(Observer):
    """Counts in ``BINS`` bins, half of them below 0, of the least power-of-two width that reaches all values.

    The bins are anchored at 0, so when a value lies beyond them pairs of bins become one, and the counts are those that
    bins of the new width would have had from the beginning. Memory is bounded whatever is observed.

    >>> histogram = Histogram()
    >>> histogram.update(torch.tensor([0.1, -3.0, 5.0]))
    >>> histogram.width, int(histogram.sums.sum())
    (0.001953125, 3)
    """

    BINS = 8192
    _LEAST_EXPONENT = -120
    _AT_ONCE = 1 << 20  # elements, for indices take eight bytes each

    _exponent = _LEAST_EXPONENT - BINS.bit_length() + 2

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self._exponent)

    def update(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        low, high = _ends(x)
        self.extend_range(low, high)
        if not (high - low).isfinite():
            return  # there are no bins for it; who observes refuses it, with its name
        assert self.sums is not None
        for part in x.detach().flatten().split(self._AT_ONCE):
            places = torch.floor(part.double() / self.width).long() + self.BINS // 2
            self.sums += torch.bincount(places, minlength=self.BINS)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        super().set_range(low, high)
        before, self._exponent = self._exponent, self._exponent_for(float(torch.maximum(-low, high)))
        if self.sums is None:
            self.sums = torch.zeros(self.BINS, dtype=torch.int64, device=low.device)
        elif self._exponent > before:
            half = self.BINS // 2
            places = (torch.arange(-half, half, device=self.sums.device) >> min(self._exponent - before, 62)) + half
            self.sums = torch.zeros_like(self.sums).index_add_(0, places, self.sums)

    def restore(self, ends: Tensor, sums: Tensor | None) -> None:
        super().restore(ends, sums)
        if sums is not None and (sums < 0).any():
            raise ValueError("it has counts below 0")

    def bins(self) -> tuple[Tensor, Tensor]:
        """The lower edges of the bins that are not empty, and their counts, both in float64."""
        assert self.sums is not None
        places = self.sums.nonzero().flatten()
        return (places - self.BINS // 2).double() * self.width, self.sums[places].double()

    def _exponent_for(self, reach: float) -> int:
        """Bins of ``2 ** exponent`` reach from the least to the greatest value."""
        exponent = math.frexp(reach)[1] if 0 < reach < math.inf else self._LEAST_EXPONENT
        return max(exponent, self._LEAST_EXPONENT) - self.BINS.bit_length() + 2


def all_reduce(observers: Collection[Observer], device: torch.device) -> None:
    """Make what every rank observed that of all, in one collective, and one more where something is counted.

    A point that a rank has not reached is -inf to it.
    """
    if world_size() == 1 or not observers:
        return
    dtype = next((each.min_val.dtype for each in observers if each.min_val is not None), torch.float32)
    nothing = torch.tensor(torch.inf, dtype=torch.float64, device=device)
    lows = torch.stack([nothing if each.min_val is None else each.min_val.to(nothing) for each in observers])
    highs = torch.stack([-nothing if each.max_val is None else each.max_val.to(nothing) for each in observers])
    # A NaN may lose against a number, so it takes part as what it is refused as.
    joint = all_reduce_tensor(torch.stack((-lows, highs)).nan_to_num(nan=torch.inf, neginf=-torch.inf), "max").to(dtype)
    for observer, low, high in zip(observers, -joint[0], joint[1], strict=True):
        observer.set_range(low, high)
    sums = {each: each.sums for each in observers if each.sums is not None}
    if sums:
        total = all_reduce_tensor(torch.cat([*sums.values()]), "sum")
        for observer, part in zip(sums, total.split([len(each) for each in sums.values()]), strict=True):
            observer.sums = part.clone()


def require_finite(observers: Mapping[str, Observer]) -> None:
    """Refuse NaN, infinities and ranges too wide for their type, naming the first point they reached; read once."""
    seen = {key: each.range for key, each in observers.items() if each.min_val is not None}
    if not seen:
        return
    like, _ = next(iter(seen.values()))
    lows, highs = (torch.stack([end.to(like) for end in ends]) for ends in zip(*seen.values(), strict=True))
    wide = highs - lows
    states = torch.where(wide == -torch.inf, _UNREACHED, torch.where(wide.isfinite(), _FINE, _ENDLESS)).tolist()
    for key, state in zip(seen, states, strict=True):
        if state == _ENDLESS:
            raise UserError(
                f"NaN or infinite values reached {key}; check the images' normalization and that the weights are finite"
            )
        if state == _UNREACHED:
            observers[key].min_val = observers[key].max_val = observers[key].sums = None


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = x.detach().aminmax()
    if low.dtype not in (torch.float32, torch.float64):
        low, high = low.to(compute_dtype(x)), high.to(compute_dtype(x))
    return low, high
