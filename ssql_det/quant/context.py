"""Modes of a network: ``with observing(...)`` and ``with quantized(...)``. One copy of weights, nothing swapped.

Blocks nest (the innermost decides what happens at its points) and restore the state they found, whatever
happens inside. A ``state_dict`` taken at any time is the ordinary, float one. Inside a block: no optimizer
step, EMA update or deepcopy. ``torch.compile`` does not see the blocks: call the model itself inside them.
Activation checkpointing runs the forward again during ``backward``: with it, call that inside the block, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.quant.affine import fake_quantize, fake_quantize_weight
from ssql_det.quant.bits import Bits
from ssql_det.quant.observers import MinMax, ObserverFactory
from ssql_det.quant.points import QuantPoint, assign_bits
from ssql_det.quant.ranges import Ranges
from ssql_det.quant.taps import OWN, Action, float_weight, module_at, shadowed, tapped


@contextmanager
def observing(model: nn.Module, points: Iterable[QuantPoint], observer: ObserverFactory = MinMax) -> Iterator[Ranges]:
    """Run float and collect the ranges of the activation points.

    >>> with observing(model, points) as ranges:
    ...     model(view_1), model(view_2)
    """
    points = _checked(model, points)
    ranges = Ranges.empty(points, observer)
    with ExitStack() as stack:
        for point in points:
            if point.is_weight:
                stack.enter_context(shadowed(module_at(model, point), weight=OWN))
            else:
                stack.enter_context(tapped(model, point, _watch(ranges[point].update)))
        yield ranges
    ranges.require_finite()


@contextmanager
def quantized(
    model: nn.Module,
    points: Iterable[QuantPoint],
    ranges: Ranges | None,
    bits: Bits,
    overrides: Mapping[str, Bits] | None = None,
) -> Iterator[None]:
    """Run at ``bits``, with fake-quantized weights and activations; ``overrides`` give paths their own.

    Weights are quantized once, on entry, and shared by every pass inside: add up the losses before
    ``backward``. ``ranges`` may be ``None`` where no activation is quantized.

    >>> with quantized(model, points, ranges, Bits.parse("2w4a"), {"layer1.*": Bits(8, 8)}):
    ...     loss = criterion(model(view_1), model(view_2))
    """
    widths = assign_bits(_checked(model, points), bits, overrides)
    ranges = Ranges({}) if ranges is None else ranges
    ranges.require(point for point, width in widths.items() if width is not None)
    with ExitStack() as stack:
        for point, width in widths.items():
            if point.is_weight:
                weight = OWN if width is None else _quantized_weight(model, point, width)
                stack.enter_context(shadowed(module_at(model, point), weight=weight))
            else:
                action = None if width is None else _quantizer(model, point, ranges, width)
                stack.enter_context(tapped(model, point, action))
        yield


def _checked(model: nn.Module, points: Iterable[QuantPoint]) -> tuple[QuantPoint, ...]:
    if hasattr(model, "_orig_mod"):  # torch.compile's wrapper
        raise UserError("a compiled graph does not see these blocks; give and call the model that was compiled")
    return tuple(points)


def _quantized_weight(model: nn.Module, point: QuantPoint, width: int) -> Tensor:
    transposed = isinstance(module_at(model, point), nn.ConvTranspose2d)
    return fake_quantize_weight(float_weight(model, point), width, axis=1 if transposed else 0)


def _quantizer(model: nn.Module, point: QuantPoint, ranges: Ranges, width: int) -> Action:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    qparams = ranges.qparams(point, width, device)

    def quantize(x: Tensor) -> Tensor:
        if qparams is not None:
            return fake_quantize(x, qparams)
        if x.numel() == 0:
            return x
        raise UserError(f"nothing was observed at {point.key} during calibration; use more, or other, images")

    return quantize


def _watch(see: Callable[[Tensor], None]) -> Action:
    def watch(x: Tensor) -> Tensor:
        see(x)
        return x

    return watch
