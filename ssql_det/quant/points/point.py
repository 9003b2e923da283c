"""Quantization points: which tensors of a network are quantized, and the bit-width of each."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.quant.bits import Bits


class Side(Enum):
    """Which tensor of a module is quantized."""

    WEIGHT = "weight"
    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True)
class QuantPoint:
    """One quantized tensor of a network: the weight, the input or the output of the module at ``path``.

    ============ =====================================================================================================
    bits         a fixed bit-width, used whenever weights (or activations) are quantized at all and no override
                 matches; ``None``: the bit-width at which the network runs
    include_zero extend the range to 0: for a ReLU that is no module, observed after the max-pool that removes its zeros
    fixed_range  the least and the greatest value, if known, as for images; ``None``: they are observed
    parameter    the name of the weight, if it is not ``weight``
    function     a function that the module's own ``forward`` calls (not that of a child): the point is an input or the
                 output of the function; empty: of the module. ``operand`` is the index of the input
    call         the index of the call of the function, or of the module in the ``forward`` of its parent; ``None``: all
                 calls. Both indices count from 0
    ============ =====================================================================================================

    >>> QuantPoint("layer1.0.conv2", Side.INPUT).key
    'layer1.0.conv2:input'
    >>> QuantPoint("blocks.0.attn", Side.INPUT, function="scaled_dot_product_attention", operand=1).key
    'blocks.0.attn/scaled_dot_product_attention[1]:input'
    >>> QuantPoint("rpn_head.conv", Side.INPUT, call=2).key
    'rpn_head.conv#2:input'
    """

    path: str
    side: Side
    bits: int | None = None
    include_zero: bool = False
    fixed_range: tuple[float, float] | None = None
    parameter: str = "weight"
    function: str = ""
    operand: int = 0
    call: int | None = None

    @property
    def key(self) -> str:
        if self.is_weight:
            return f"{self.path}:{self.parameter}"
        call = "" if self.call is None else f"#{self.call}"
        operand = f"[{self.operand}]" if self.function and self.side is Side.INPUT else ""
        function = f"/{self.function}" if self.function else ""
        return f"{self.path}{function}{call}{operand}:{self.side.value}"

    @property
    def is_weight(self) -> bool:
        return self.side is Side.WEIGHT

    @property
    def parameter_name(self) -> str:
        """The full name of a weight point's parameter, as in ``named_parameters``."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter


def assign_bits(
    points: Sequence[QuantPoint], bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> dict[QuantPoint, int | None]:
    """The bit-width of every point: of an override that matches the path, else the point's own, else ``bits``.

    Patterns are shell patterns of paths (``layer1.*``), or of keys if they have a colon (``layer1.*.conv2:output``); if
    several match, the last one is used. Where ``bits`` is float, only points with an override are quantized.

    >>> points = [QuantPoint("conv1", Side.WEIGHT, bits=8), QuantPoint("conv2", Side.WEIGHT)]
    >>> list(assign_bits(points, Bits(4, 4)).values())
    [8, 4]
    >>> list(assign_bits(points, Bits(4, 4), {"conv2": Bits(6, 6)}).values())
    [8, 6]
    """
    overrides = overrides or {}
    for pattern in overrides:
        if not any(matches_pattern(point, pattern) for point in points):
            names = [point.key if ":" in pattern else point.path for point in points]
            raise UserError(f"no quantization point matches the override {pattern!r}{did_you_mean(pattern, names)}")
    return {point: _find_bits(point, bits, overrides) for point in points}


def matches_pattern(point: QuantPoint, pattern: str) -> bool:
    """Whether a shell pattern matches the path of a point, or its key if the pattern has a colon.

    >>> matches_pattern(QuantPoint("conv1", Side.INPUT), "conv*:input")
    True
    """
    return fnmatch.fnmatchcase(point.key if ":" in pattern else point.path, pattern)


def _find_bits(point: QuantPoint, bits: Bits, overrides: Mapping[str, Bits]) -> int | None:
    matching = [override for pattern, override in overrides.items() if matches_pattern(point, pattern)]
    applied = matching[-1] if matching else bits
    bit_width = applied.weight if point.is_weight else applied.act
    return bit_width if matching or bit_width is None else point.bits or bit_width


def select_inside(
    point_bits: Mapping[QuantPoint, int | None], paths: Collection[str] | None
) -> dict[QuantPoint, int | None]:
    """The points of the modules at ``paths`` and of modules inside these; ``None`` selects all points.

    >>> bits = {QuantPoint("layer1.0.conv1", Side.WEIGHT): 4, QuantPoint("layer10", Side.OUTPUT): 8}
    >>> [point.key for point in select_inside(bits, ["layer1"])]
    ['layer1.0.conv1:weight']
    """
    if paths is None:
        return dict(point_bits)
    prefixes = tuple(f"{path}." if path else "" for path in paths)  # the model itself has the path ""
    return {point: bits for point, bits in point_bits.items() if f"{point.path}.".startswith(prefixes)}
