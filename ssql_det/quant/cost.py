"""What a network costs at given bits: size, multiply-adds, bit-operations, from the same quantization points.

A multiply-add of a ``b_w``-bit weight with a ``b_a``-bit activation counts ``b_w * b_a`` bit-operations, with
32 for float. Which point an activation comes from is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ssql_det.quant.bits import Bits
from ssql_det.quant.points import QuantPoint, assign_bits
from ssql_det.quant.tracing import Operation, Trace, trace_pass

FLOAT_BITS = 32
IMAGE_BITS = 8  # what the first layer reads


@dataclass(frozen=True)
class Cost:
    """Bytes of the parameters, and multiply-adds and bit-operations of the convs and linears of one pass."""

    bytes: int
    macs: int
    bit_ops: int


@dataclass(frozen=True)
class ParameterSize:
    """How many elements a parameter has, the bytes of one in float, and how many scales a weight has."""

    elements: int
    element_bytes: int
    channels: int


@dataclass(frozen=True)
class CostProfile:
    """One traced pass, priced at any bits.

    >>> profile = profile_cost(model, points, torch.zeros(1, 3, 224, 224))
    >>> profile.at(Bits(4, 4)).bytes / profile.at(Bits.FP).bytes  # of a ResNet-18, its classifier in float
    0.165
    """

    points: tuple[QuantPoint, ...]
    trace: Trace
    parameters: Mapping[str, ParameterSize]

    def at(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> Cost:
        """The cost at these bits, with the same overrides as ``Quantization.at`` takes."""
        widths = assign_bits(self.points, bits, overrides)
        weights = {point.parameter_name: width for point, width in widths.items() if point.is_weight}
        return Cost(
            bytes=sum(_bytes(size, weights.get(name)) for name, size in self.parameters.items()),
            macs=self.trace.macs,
            bit_ops=sum(each.macs * _product(each, weights, widths) for each in self.trace.operations),
        )


def profile_cost(
    model: nn.Module,
    points: Iterable[QuantPoint],
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> CostProfile:
    """Trace one float pass of ``model(inputs)``, or ``forward(model, inputs)``."""
    points = tuple(points)
    sizes = {
        f"{path}.{name}" if path else name: ParameterSize(
            parameter.numel(), parameter.element_size(), _channels(module, parameter)
        )
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    return CostProfile(points, trace_pass(model, points, inputs, forward), sizes)


def _bytes(size: ParameterSize, width: int | None) -> int:
    if width is None:
        return size.elements * size.element_bytes
    return -(-size.elements * width // 8) + size.channels * FLOAT_BITS // 8  # and a scale a channel


def _channels(module: nn.Module, parameter: nn.Parameter) -> int:
    if isinstance(module, nn.ConvTranspose2d):
        return int(module.out_channels)
    return len(parameter) if parameter.ndim else 1


def _product(operation: Operation, weights: Mapping[str, int | None], widths: Mapping[QuantPoint, int | None]) -> int:
    weight = weights.get(operation.parameter)
    acts = [widths[source] if source else None for source in operation.sources]
    if operation.reads_image and acts[0] is None and weight is not None:
        acts[0] = IMAGE_BITS
    factors = acts if not operation.parameter else [weight, acts[0]]
    return math.prod(factor or FLOAT_BITS for factor in factors)
