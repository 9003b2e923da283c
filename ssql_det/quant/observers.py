"""Observers watch tensors go by and answer which range to quantize.

An observer has three verbs, ``update(x)``, ``range(bits)`` and ``merge(other)``, and a ``state()`` for files
and for other ranks. Which one is used is an argument everywhere, so another kind (percentile, least error) is one
more class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor


class Observer(ABC):
    """What a quantization point needs of an observer. ``axis`` is the channel axis, ``None`` per tensor."""

    name: ClassVar[str]
    axis: int | None = None

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether nothing has been observed yet."""

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Take in a tensor; an empty one changes nothing."""

    @abstractmethod
    def range(self, bits: int) -> tuple[Tensor, Tensor]:
        """The low and the high end to quantize, for a grid of this many bits."""

    @abstractmethod
    def merge(self, other: Observer) -> None:
        """Become the observer that saw both streams."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain JSON values from which :meth:`from_state` makes an equal observer."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Observer: ...


ObserverFactory = Callable[[], Observer]


class MinMax(Observer):
    """The least and the greatest value seen, per tensor or per channel of ``axis``.

    >>> observer = MinMax()
    >>> observer.update(torch.tensor([1.0, -2.0])); observer.update(torch.tensor([3.0]))
    >>> observer.range(bits=8)
    (tensor(-2.), tensor(3.))
    """

    name = "minmax"

    def __init__(self, axis: int | None = None) -> None:
        self.axis = axis
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        return self._low is None

    def update(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        x = x.detach()
        low, high = x.aminmax() if self.axis is None else x.movedim(self.axis, 0).flatten(1).aminmax(dim=1)
        if low.dtype not in (torch.float32, torch.float64):
            low, high = low.float(), high.float()
        self._widen(low, high)

    def range(self, bits: int) -> tuple[Tensor, Tensor]:
        if self._low is None or self._high is None:
            raise ValueError("nothing was observed")
        return self._low, self._high

    def merge(self, other: Observer) -> None:
        if not isinstance(other, MinMax) or other.axis != self.axis:
            raise TypeError(f"cannot merge {type(other).__name__} into MinMax(axis={self.axis})")
        if other._low is not None and other._high is not None:
            self._widen(other._low, other._high)

    def state(self) -> dict[str, Any]:
        if self._low is None or self._high is None:
            return {"axis": self.axis}
        dtype = str(self._low.dtype).removeprefix("torch.")
        return {"axis": self.axis, "dtype": dtype, "low": self._low.tolist(), "high": self._high.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> MinMax:
        observer = cls(state["axis"])
        if "low" in state:
            dtype = {"float32": torch.float32, "float64": torch.float64}[state["dtype"]]
            observer._low = torch.tensor(state["low"], dtype=dtype)
            observer._high = torch.tensor(state["high"], dtype=dtype)
        return observer

    def _widen(self, low: Tensor, high: Tensor) -> None:
        if self._low is None or self._high is None:
            self._low, self._high = low, high
        else:
            self._low = torch.minimum(self._low, low.to(self._low.device))
            self._high = torch.maximum(self._high, high.to(self._high.device))
