"""Observers watch a point's activations in float passes; what they hold is two tensors, so that they merge by tensors.

``maxima`` are merged by the larger of each, ``sums`` by adding up. Merging is exact and in any order: shards and ranks
give what one stream would have given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ssql_det.core.errors import UserError
from ssql_det.core.ranks import all_reduced, world_size
from ssql_det.quant.affine import computing_type

_FINE, _ENDLESS, _UNREACHED = range(3)


class Observer(ABC):
    """``maxima`` begins with minus the least value and the greatest; it is ``None`` while nothing was observed."""

    maxima: Tensor | None = None
    sums: Tensor | None = None

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Take in a tensor; an empty one changes nothing."""

    @abstractmethod
    def align(self, maxima: Tensor) -> None:
        """Take over the maxima of several, so that ``sums`` are of their kind and can be added up."""

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest value observed."""
        if self.maxima is None:
            raise ValueError("nothing was observed")
        return -self.maxima[0], self.maxima[1]

    def restore(self, maxima: Tensor, sums: Tensor | None) -> None:
        """Become what was saved; a ``ValueError`` if no observer of this kind can have held it."""
        if maxima.dtype not in (torch.float32, torch.float64) or maxima.ndim != 1 or len(maxima) < 2:
            raise ValueError("its ends are no two numbers")
        low, high = -maxima[0], maxima[1]
        if not (low <= high and (high - low).isfinite()):
            raise ValueError(f"it goes from {low.item()} to {high.item()}")
        self.align(maxima)
        kind = None if self.sums is None else (self.sums.shape, self.sums.dtype)
        if kind != (None if sums is None else (sums.shape, sums.dtype)):
            raise ValueError("it is of another observer")
        self.sums = sums

    def merge(self, other: Observer) -> None:
        """Become the observer of both streams."""
        if other.maxima is None:
            return
        theirs = type(self)()
        theirs.maxima, theirs.sums = other.maxima, None if other.sums is None else other.sums.clone()
        joint = theirs.maxima if self.maxima is None else torch.maximum(self.maxima, theirs.maxima.to(self.maxima))
        for each in (self, theirs):
            each.align(joint)
        if theirs.sums is not None:
            self.sums = theirs.sums if self.sums is None else self.sums + theirs.sums.to(self.sums.device)


class MinMaxObserver(Observer):
    """The least and the greatest value.

    >>> observer = MinMaxObserver()
    >>> observer.update(torch.tensor([1.0, -2.0])); observer.update(torch.tensor([3.0]))
    >>> observer.ends
    (tensor(-2.), tensor(3.))
    """

    def update(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        maxima = _maxima(x)
        self.align(maxima if self.maxima is None else torch.maximum(self.maxima, maxima.to(self.maxima.device)))

    def align(self, maxima: Tensor) -> None:
        self.maxima = maxima


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

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self._exponent(self.maxima))

    def update(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        maxima = _maxima(x)
        self.align(maxima if self.maxima is None else torch.maximum(self.maxima, maxima.to(self.maxima.device)))
        if not maxima.isfinite().all():
            return  # there are no bins for it; who observes refuses it, with its name
        assert self.sums is not None
        for part in x.detach().flatten().split(self._AT_ONCE):
            places = torch.floor(part.double() / self.width).long() + self.BINS // 2
            self.sums += torch.bincount(places, minlength=self.BINS)

    def align(self, maxima: Tensor) -> None:
        if self.sums is None:
            self.sums = torch.zeros(self.BINS, dtype=torch.int64, device=maxima.device)
        elif self.maxima is not None:
            halvings = self._exponent(maxima) - self._exponent(self.maxima)
            if halvings > 0:
                half = self.BINS // 2
                places = (torch.arange(-half, half, device=self.sums.device) >> min(halvings, 62)) + half
                self.sums = torch.zeros_like(self.sums).index_add_(0, places, self.sums)
        self.maxima = maxima

    def restore(self, maxima: Tensor, sums: Tensor | None) -> None:
        super().restore(maxima, sums)
        if sums is not None and (sums < 0).any():
            raise ValueError("it has counts below 0")

    def bins(self) -> tuple[Tensor, Tensor]:
        """The lower edges of the bins that are not empty, and their counts, both in float64."""
        assert self.sums is not None
        places = self.sums.nonzero().flatten()
        return (places - self.BINS // 2).double() * self.width, self.sums[places].double()

    def _exponent(self, maxima: Tensor | None) -> int:
        """Bins of ``2 ** exponent`` reach from the least to the greatest value."""
        reach = 0.0 if maxima is None else float(maxima.max())
        exponent = math.frexp(reach)[1] if 0 < reach < math.inf else self._LEAST_EXPONENT
        return max(exponent, self._LEAST_EXPONENT) - (self.BINS // 2).bit_length() + 1


def all_reduce(observers: Collection[Observer], device: torch.device) -> None:
    """Make what every rank observed that of all, in one collective, and one more where something is counted.

    A point that a rank has not reached is -inf to it.
    """
    if world_size() == 1 or not observers:
        return
    nothing = torch.full((2,), -torch.inf, dtype=torch.float64, device=device)
    dtype = next((each.maxima.dtype for each in observers if each.maxima is not None), torch.float32)
    own = [nothing if each.maxima is None else each.maxima.double() for each in observers]
    # A NaN may lose against a number, so it takes part as what it is refused as.
    joint = all_reduced(torch.cat(own).nan_to_num(nan=torch.inf, neginf=-torch.inf), "max")
    for observer, maxima in zip(observers, joint.split([len(each) for each in own]), strict=True):
        observer.align(maxima.to(dtype))
    sums = {each: each.sums for each in observers if each.sums is not None}
    if sums:
        total = all_reduced(torch.cat([*sums.values()]), "sum")
        for observer, part in zip(sums, total.split([len(each) for each in sums.values()]), strict=True):
            observer.sums = part.clone()


def require_finite(observers: Mapping[str, Observer]) -> None:
    """Refuse NaN, infinities and ranges too wide for their type, naming the first point they reached; read once."""
    seen = {key: each.maxima for key, each in observers.items() if each.maxima is not None}
    if not seen:
        return
    one, *_ = seen.values()
    wide = torch.stack([maxima[:2].to(one) for maxima in seen.values()]).sum(dim=1)
    states = torch.where(wide == -torch.inf, _UNREACHED, torch.where(wide.isfinite(), _FINE, _ENDLESS)).tolist()
    for key, state in zip(seen, states, strict=True):
        if state == _ENDLESS:
            raise UserError(
                f"NaN or infinite values reached {key}; check the images' normalization and that the weights are finite"
            )
        if state == _UNREACHED:
            observers[key].maxima = observers[key].sums = None


def _maxima(x: Tensor) -> Tensor:
    low, high = x.detach().aminmax()
    return torch.stack((-low, high)).to(computing_type(x))
