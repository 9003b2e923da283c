"""What a quantizer is: one object a point, with what it learned, that rounds a tensor to a width, also in integers.

A new one is one file: a subclass of :class:`Quantizer`, registered for weights or for activations.

>>> @ACTIVATIONS.register("half")
... class Half(RangeQuantizer):  # of the range that was observed
...     def choose_range(self, bits):
...         low, high = self.observer.range
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
from ssql_det.quant.affine import QParams, choose_qparams, fake_quantize, quantize
from ssql_det.quant.bits import LEAST, MOST
from ssql_det.quant.points import QuantPoint
from ssql_det.quant.quantizers.observers import MinMaxObserver, Observer


@dataclass(frozen=True)
class TensorSpec:
    """What a quantizer may know of the tensor it serves. Of a weight: its shape, and the axis of output channels."""

    point: QuantPoint
    shape: tuple[int, ...] | None = None
    axis: int | None = None


@dataclass(frozen=True)
class QuantizedTensor:
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

    supported_bits: ClassVar[range] = range(LEAST, MOST + 1)

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observer: Observer | None = None

    @abstractmethod
    def forward(self, x: Tensor, bits: int) -> Tensor:
        """``x`` on the grid, in its own shape and type; gradients go straight through the rounding."""

    @abstractmethod
    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        """``x`` in integers whose values are those of ``forward``; ``None`` where it has no such form."""


Factory = Callable[..., Quantizer]  # takes the place, then the values behind the name in a scheme

WEIGHTS: Registry[Factory] = Registry("weight quantizer")
ACTIVATIONS: Registry[Factory] = Registry("activation quantizer")


class RangeQuantizer(Quantizer):
    """An activation on the asymmetric grid of a range, which is chosen for a width from what was observed.

    Chosen once, until something else is observed; where parameters take part in the choice, each time, and gradients
    reach them.
    """

    observer_class: ClassVar[Callable[[], Observer]] = MinMaxObserver
    observer: Observer

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self.observer = type(self).observer_class()
        self._grids: dict[int, tuple[Tensor, Tensor, QParams]] = {}

    @abstractmethod
    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        """The low and the high end of the grid of this many bits."""

    def get_qparams(self, bits: int) -> QParams:
        """That of a width; an error where nothing was observed."""
        low, high = self.observer.min_val, self.observer.max_val
        if low is None or high is None:
            raise UserError(
                f"nothing was observed at {self.spec.point.key} during calibration; use more, or other, images"
            )
        if next(self.parameters(), None) is not None:
            return self._chosen(bits)
        kept = self._grids.get(bits)
        if kept is None or kept[0] is not low or kept[1] is not high:
            self._grids[bits] = kept = (low, high, self._chosen(bits))
        return kept[2]

    def _chosen(self, bits: int) -> QParams:
        point, (low, high) = self.spec.point, self.observer.range
        low, high = (
            self.choose_range(bits) if point.fixed_range is None else (low.new_tensor(end) for end in point.fixed_range)
        )
        if point.include_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        return choose_qparams(low, high, bits)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return fake_quantize(x, self.get_qparams(bits)) if x.numel() else x

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        grid = self.get_qparams(bits)
        return None if (grid.scale == 0).any() else quantize_tensor(x, grid)


def quantize_tensor(x: Tensor, grid: QParams) -> QuantizedTensor:
    """A tensor on a grid with integer zero points."""
    codes = quantize(x, grid)
    return QuantizedTensor(codes.to(smallest_int_dtype(grid.qmin, grid.qmax)), grid.scale, grid.zero_point)


def smallest_int_dtype(least: int, most: int) -> torch.dtype:
    """
    >>> smallest_int_dtype(0, 255), smallest_int_dtype(-255, 255)
    (torch.uint8, torch.int16)
    """
    types = (torch.uint8, torch.int8, torch.int16, torch.int32)
    return next(each for each in types if torch.iinfo(each).min <= least and most <= torch.iinfo(each).max)
