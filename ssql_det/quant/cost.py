"""What a network costs at a bit-width: model size, multiply-adds and bit-operations.

A multiply-add of a ``b_w``-bit weight and a ``b_a``-bit activation counts as ``b_w * b_a`` bit-operations; a float
operand counts as 32 bits. The point that quantizes each activation is found by tracing a forward pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ssql_det.quant.bits import Bits
from ssql_det.quant.pairwise import PairwiseCost
from ssql_det.quant.points import QuantPoint, assign_bits
from ssql_det.quant.tracing import Operation, Trace, trace_pass

FLOAT_BITS = 32  # of a float operand, and of a scale
PointBits = Mapping[QuantPoint, int | None]
IMAGE_BITS = 8  # of the first layer's input, if the layer's weight is quantized and no point quantizes the input


@dataclass(frozen=True)
class Cost:
    """Bytes of all parameters; multiply-adds and bit-operations of the convolutions and matrix products
    of the traced pass."""

    bytes: int
    macs: int
    bit_ops: int


@dataclass(frozen=True)
class ParameterSize:
    """The number of elements of a parameter, the bytes of a float element, and the channels (one scale each)."""

    elements: int
    element_bytes: int
    channels: int


@dataclass(frozen=True)
class CostProfile:
    """One traced forward pass, from which the cost of this pass at any bit-width follows.

    >>> from ssql_det.quant import profile_cost, quant_points
    >>> profile = profile_cost(model, quant_points(model), images)
    >>> round(profile.at(Bits(4, 4)).bytes / profile.at(Bits.FP).bytes, 3)
    0.13
    """

    points: tuple[QuantPoint, ...]
    trace: Trace
    parameters: Mapping[str, ParameterSize]  # by the names of ``named_parameters``

    def at(self, bits: Bits, overrides: Mapping[str, Bits] | None = None) -> Cost:
        """The cost at a bit-width; ``overrides`` as in ``Quantization.at``."""
        point_bits = assign_bits(self.points, bits, overrides)
        weight_bits = _get_weight_bits(point_bits)
        return Cost(
            bytes=sum(_count_bytes(size, weight_bits.get(name)) for name, size in self.parameters.items()),
            macs=self.trace.macs,
            bit_ops=sum(each.macs * _count_bit_ops(each, weight_bits, point_bits) for each in self.trace.operations),
        )

    def split(self, choices: Sequence[Sequence[PointBits]], others: PointBits) -> tuple[PairwiseCost, PairwiseCost]:
        """The bytes, and the bit-operations, as sums over groups of points.

        ``choices`` are the bit-widths that a group's points may have, for each group; ``others`` those of the points in
        no group. A multiply-add belongs to the groups of its weight and of its input, which may be two.
        """
        owners = {point: group for group, members in enumerate(choices) for point in members[0]}
        weight_owners = {point.parameter_name: group for point, group in owners.items() if point.is_weight}
        fixed_weights, constant = _get_weight_bits(others), 0
        num_bytes = [[0] * len(members) for members in choices]
        weights = [[_get_weight_bits(point_bits) for point_bits in members] for members in choices]
        for name, size in self.parameters.items():
            if name not in weight_owners:
                constant += _count_bytes(size, fixed_weights.get(name))
                continue
            group = weight_owners[name]
            for choice, weight_bits in enumerate(weights[group]):
                num_bytes[group][choice] += _count_bytes(size, weight_bits[name])
        return PairwiseCost(constant, num_bytes), self._split_bit_ops(choices, others, owners, weight_owners)

    def _split_bit_ops(
        self,
        choices: Sequence[Sequence[PointBits]],
        others: PointBits,
        owners: Mapping[QuantPoint, int],
        weight_owners: Mapping[str, int],
    ) -> PairwiseCost:
        constant, singles = 0, [[0] * len(members) for members in choices]
        pairs: dict[tuple[int, int], list[list[int]]] = {}
        for operation in self.trace.operations:
            factors = {owners[point] for point in operation.input_points if point is not None and point in owners}
            groups = sorted(factors | {weight_owners[each] for each in [operation.parameter] if each in weight_owners})
            for picked in itertools.product(*(range(len(choices[group])) for group in groups)):
                point_bits = dict(others)
                for group, choice in zip(groups, picked, strict=True):
                    point_bits |= choices[group][choice]
                bit_ops = operation.macs * _count_bit_ops(operation, _get_weight_bits(point_bits), point_bits)
                if len(groups) == 2:
                    first, second = groups
                    empty = [[0] * len(choices[second]) for _ in choices[first]]
                    pairs.setdefault((first, second), empty)[picked[0]][picked[1]] += bit_ops
                elif groups:
                    singles[groups[0]][picked[0]] += bit_ops
                else:
                    constant += bit_ops
        return PairwiseCost(constant, singles, pairs)


def profile_cost(
    model: nn.Module,
    points: Iterable[QuantPoint],
    inputs: Any,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> CostProfile:
    """Trace one float pass of ``model(inputs)``, or of ``forward(model, inputs)``."""
    points = tuple(points)
    sizes = {
        f"{path}.{name}" if path else name: ParameterSize(
            parameter.numel(), parameter.element_size(), _count_channels(module, parameter)
        )
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    return CostProfile(points, trace_pass(model, points, inputs, forward), sizes)


def _get_weight_bits(point_bits: PointBits) -> dict[str, int | None]:
    return {point.parameter_name: bits for point, bits in point_bits.items() if point.is_weight}


def _count_bytes(size: ParameterSize, bits: int | None) -> int:
    if bits is None:
        return size.elements * size.element_bytes
    return -(-size.elements * bits // 8) + size.channels * FLOAT_BITS // 8  # with a float scale per channel


def _count_channels(module: nn.Module, parameter: nn.Parameter) -> int:
    if isinstance(module, nn.ConvTranspose2d):
        return int(module.out_channels)
    return len(parameter) if parameter.ndim else 1


def _count_bit_ops(
    operation: Operation, weight_bits: Mapping[str, int | None], point_bits: Mapping[QuantPoint, int | None]
) -> int:
    """The bit-operations of one multiply-add of the operation."""
    weight = weight_bits.get(operation.parameter)
    activations = [point_bits[point] if point else None for point in operation.input_points]
    if operation.reads_image and activations[0] is None and weight is not None:
        activations[0] = IMAGE_BITS
    factors = activations if not operation.parameter else [weight, activations[0]]
    return math.prod(bits or FLOAT_BITS for bits in factors)
