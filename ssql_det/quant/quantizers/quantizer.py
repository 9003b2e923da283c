"""The base classes of quantizers. A quantizer quantizes the tensor at one point of a network, at every bit-width.

A new quantizer is one file: a subclass of :class:`Quantizer`, registered for weights or for activations. Decorated with
``@ACTIVATIONS.register("half")``, this class is selected by the scheme ``act=half``:

>>> class HalfRange(RangeQuantizer):
...     def choose_range(self, bits):
...         min_val, max_val = self.observer.range
...         return min_val / 2, max_val / 2
>>> from ssql_det.quant import Side
>>> quantizer = HalfRange(TensorSpec(QuantPoint("relu", Side.OUTPUT)))
>>> quantizer.observer.update(torch.tensor([0.0, 6.0]))
>>> quantizer(torch.tensor([0.9, 1.7, 5.0]), bits=2)
tensor([1., 2., 3.])
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
from ssql_det.quant.bits import MAX_BITS, MIN_BITS
from ssql_det.quant.points import QuantPoint
from ssql_det.quant.quantizers.observers import MinMaxObserver, Observer


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to quantize: its point, and for a weight its shape (else ``None``) and the axis of output channels."""

    point: QuantPoint
    shape: tuple[int, ...] | None = None
    axis: int = 0


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers, in the smallest type that holds them, which stand for ``(integers - zero_point) * scale``."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self) -> Tensor:
        return (self.integers.to(self.scale.dtype) - self.zero_point) * self.scale


class Quantizer(nn.Module, ABC):
    """Quantizes one tensor of a network, at any bit-width in ``supported_bits``.

    Parameters of a quantizer are trained with the network; parameters and buffers are saved. ``observer`` observes the
    tensor in float forward passes; a quantizer of weights needs no observer.
    """

    supported_bits: ClassVar[range] = range(MIN_BITS, MAX_BITS + 1)  # 2 to 16
    trains_each_width: ClassVar[bool] = False  # its parameters, if it has any, are others at each bit-width
    observes_once: ClassVar[bool] = False  # in training: its parameters start from the first pass, and go their own way

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.observer: Observer | None = None

    @property
    def needs_observation(self) -> bool:
        """Whether training must observe the tensor in the next pass."""
        has_started = self.observes_once and self.observer is not None and self.observer.min_val is not None
        return self.observer is not None and not has_started

    def observe(self, x: Tensor) -> Tensor:
        """Pass ``x`` to the observer, and return it."""
        # Activation checkpointing repeats forward passes within a backward pass; they were observed the first time.
        if self.observer is not None and torch._C._current_graph_task_id() == -1:
            self.observer.update(x)
        return x

    @abstractmethod
    def forward(self, x: Tensor, bits: int) -> Tensor:
        """Fake-quantize ``x``: the result has its shape and type, and gradients pass straight through the rounding."""

    @abstractmethod
    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        """The integers that stand for ``forward(x)``; ``None`` where it returns ``x``, as with the scale 0 of a single
        observed value."""


QuantizerFactory = Callable[..., Quantizer]
"""Takes a TensorSpec, then the numbers that follow the quantizer's name in a scheme."""

WEIGHTS: Registry[QuantizerFactory] = Registry("weight quantizer")
ACTIVATIONS: Registry[QuantizerFactory] = Registry("activation quantizer")


class RangeQuantizer(Quantizer):
    """An activation quantizer, per tensor and asymmetric. Its range is chosen from the observed values, or the point's
    ``fixed_range``.

    The scale and zero point of a bit-width are cached until the observer is updated, which makes new tensors. A
    quantizer with trained parameters computes both at each call, so that gradients reach its parameters.
    """

    observer_class: ClassVar[Callable[[], Observer]] = MinMaxObserver
    observer: Observer

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self.observer = type(self).observer_class()
        self._cache: dict[int, tuple[Tensor, Tensor, QParams]] = {}

    @abstractmethod
    def choose_range(self, bits: int) -> tuple[Tensor, Tensor]:
        """The least and the greatest value to represent at this bit-width."""

    def get_qparams(self, bits: int) -> QParams:
        """Return the scale and zero point at a bit-width; raise an error if nothing was observed."""
        min_val, max_val = self.observer.min_val, self.observer.max_val
        if min_val is None or max_val is None:
            raise UserError(
                f"nothing was observed at {self.spec.point.key} during calibration; use more or different images"
            )
        if next(self.parameters(), None) is not None:
            return self._compute_qparams(bits)
        cached = self._cache.get(bits)
        if cached is None or cached[0] is not min_val or cached[1] is not max_val:
            self._cache[bits] = cached = (min_val, max_val, self._compute_qparams(bits))
        return cached[2]

    def _compute_qparams(self, bits: int) -> QParams:
        point = self.spec.point
        if point.fixed_range is None:
            low, high = self.choose_range(bits)
        else:
            low, high = (self.observer.range[0].new_tensor(bound) for bound in point.fixed_range)
        if point.include_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        return choose_qparams(low, high, bits)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        return fake_quantize(x, self.get_qparams(bits)) if x.numel() else x

    def quantize(self, x: Tensor, bits: int) -> QuantizedTensor | None:
        qparams = self.get_qparams(bits)
        return None if (qparams.scale == 0).any() else quantize_tensor(x, qparams)


def quantize_tensor(x: Tensor, qparams: QParams) -> QuantizedTensor:
    """Quantize ``x`` to the smallest integer type that holds ``qmin`` to ``qmax``.

    >>> quantize_tensor(torch.tensor([-3.0, 0.4, 9.0]), choose_qparams(torch.tensor(-1.0), torch.tensor(2.0), bits=2))
    QuantizedTensor(integers=tensor([0, 1, 3], dtype=torch.uint8), scale=tensor(1.), zero_point=tensor(1.))
    """
    integers = quantize(x, qparams)
    return QuantizedTensor(
        integers.to(smallest_int_dtype(qparams.qmin, qparams.qmax)), qparams.scale, qparams.zero_point
    )


def smallest_int_dtype(min_val: int, max_val: int) -> torch.dtype:
    """The smallest integer type that holds the values from ``min_val`` to ``max_val``.

    >>> smallest_int_dtype(0, 255), smallest_int_dtype(-255, 255)
    (torch.uint8, torch.int16)
    """
    dtypes = (torch.uint8, torch.int8, torch.int16, torch.int32)
    return next(each for each in dtypes if torch.iinfo(each).min <= min_val and max_val <= torch.iinfo(each).max)
