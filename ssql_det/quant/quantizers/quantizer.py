"""What a quantizer is: one object a point, with what it learned, that rounds a tensor to a width, also in integers.

A new one is one file: a subclass of :class:`Quantizer`, registered for weights or for activations.

>>> @ACTIVATIONS.register("half")
... class Half(RangeQuantizer):  # of the range that was observed
...     def range(self, bits):
...         low, high = self.observer.ends
...         return low / 2, high / 2
>>> Scheme.parse("act=half")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.core.registry import Registry
from ssql_det.quant.affine import QParams, choose_qparams, fake_quantize, integer_codes
from ssql_det.quant.bits import LEAST, MOST
from ssql_det.quant.points import QuantPoint
from ssql_det.quant.quantizers.observers import MinMaxObserver, Observer


@dataclass(frozen=True)
class Place:
    """What a quantizer may know of the tensor it serves. Of a weight: its shape, and the axis of output channels."""

    point: QuantPoint
    shape: tuple[int, ...] | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Integers:
    """A tensor as an integer machine holds it: ``(codes - zero_point) * scale``, in the smallest type that serves."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def values(self) -> Tensor:
        return (self.codes.to(self.scale.dtype) - self.zero_point) * self.scale


class Quantizer(nn.Module, ABC):
    """A tensor rounded to the grid of a width. One quantizer serves one point, at every width.

    What it learns are parameters and buffers: they are trained with the network, and saved. ``observer`` is what it
    sees of a float pass; a weight needs none. ``widths`` are the bits that it can give.
    """

    widths: ClassVar[range] = range(LEAST, MOST + 1)

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.observer: Observer | None = None

    @abstractmethod
    def forward(self, x: Tensor, bits: int) -> Tensor:
        """``x`` on the grid, in its own shape and type; gradients go straight through the rounding."""

    @abstractmethod
    def integers(self, x: Tensor, bits: int) -> Integers | None:
        """``x`` in integers whose values are those of ``forward``; ``None`` where it has no such form."""


Factory = Callable[..., Quantizer]  # takes the place, then the values behind the name in a scheme

WEIGHTS: Registry[Factory] = Registry("weight quantizer")
ACTIVATIONS: Registry[Factory] = Registry("activation quantizer")


class RangeQuantizer(Quantizer):
    """An activation on the asymmetric grid of a range, which is chosen for a width from what was observed.

    Chosen once, until something else is observed; where parameters take part in the choice, each time, and gradients
    reach them.
    """

    observe_with: ClassVar[Callable[[], Observer]] = MinMaxObserver
    observer: Observer

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.observer = type(self).observe_with()
        self._grids: dict[int, tuple[Tensor, Tensor, QParams]] = {}

    @abstractmethod
    def range(self, bits: int) -> tuple[Tensor, Tensor]:
        """The low and the high end of the grid of this many bits."""

    def grid(self, bits: int) -> QParams:
        """That of a width; an error where nothing was observed."""
        low, high = self.observer.low, self.observer.high
        if low is None or high is None:
            raise UserError(
                f"nothing was observed at {self.place.point.key} during calibration; use more, or other, images"
            )
        if next(self.parameters(), None) is not None:
            return self._chosen(bits)
        kept = self._grids.get(bits)
        if kept is None or kept[0] is not low or kept[1] is not high:
            self._grids[bits] = kept = (low, high, self._chosen(bits))
        return kept[2]

    def _chosen(self, bits: int) -> QParams:
        point, (low, high) = self.place.point, self.observer.ends
        low, high = self.range(bits) if point.ends is None else (low.new_tensor(end) for end in point.ends)
        if point.with_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        return choose_qparams(low, high, bits)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return fake_quantize(x, self.grid(bits)) if x.numel() else x

    def integers(self, x: Tensor, bits: int) -> Integers | None:
        grid = self.grid(bits)
        return None if (grid.scale == 0).any() else integers_on(x, grid)


def integers_on(x: Tensor, grid: QParams) -> Integers:
    """A tensor on a grid with integer zero points."""
    codes = integer_codes(x, grid)
    return Integers(codes.to(smallest_type(grid.qmin, grid.qmax)), grid.scale, grid.zero_point)


def smallest_type(least: int, most: int) -> torch.dtype:
    """
    >>> smallest_type(0, 255), smallest_type(-255, 255)
    (torch.uint8, torch.int16)
    """
    types = (torch.uint8, torch.int8, torch.int16, torch.int32)
    return next(each for each in types if torch.iinfo(each).min <= least and most <= torch.iinfo(each).max)
