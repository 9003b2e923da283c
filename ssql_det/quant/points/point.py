"""A place where a network is quantized, as a value, and the bits that it has at a width."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.quant.bits import Bits


class Side(Enum):
    """What of a module is quantized."""

    WEIGHT = "weight"
    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True)
class QuantPoint:
    """One place where a network is quantized: one side of the module at ``path``.

    ========== ===================================================================================================
    bits       a width of its own, whenever its side is quantized at all
    include_zero  the range is widened to reach 0: a ReLU's output that can only be seen after a max-pool
    ends       the range, where it is known and not observed: an image's
    parameter  the weight's name, where it is not ``weight``
    function   a function that the module's own forward calls (not those of modules inside): its side, not the
               module's. ``operand`` is the argument, of an input; ``call`` counts the function's calls in a forward
    ========== ===================================================================================================

    >>> QuantPoint("layer1.0.conv2", Side.INPUT).key
    'layer1.0.conv2:input'
    >>> QuantPoint("blocks.0.attn", Side.INPUT, function="scaled_dot_product_attention", operand=1).key
    'blocks.0.attn/scaled_dot_product_attention[1]:input'
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
        function = f"/{self.function}{call}{operand}" if self.function else ""
        return f"{self.path}{function}:{self.side.value}"

    @property
    def is_weight(self) -> bool:
        return self.side is Side.WEIGHT

    @property
    def parameter_name(self) -> str:
        """As the network calls a weight point's parameter."""
        return f"{self.path}.{self.parameter}" if self.path else self.parameter


def assign_bits(
    points: Sequence[QuantPoint], bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> dict[QuantPoint, int | None]:
    """The width of every point: an override whose pattern matches its path, else its own, else ``bits``.

    Patterns are a shell's (``layer1.*``); of several that match, the last one counts. Where ``bits`` is float
    only an override quantizes.
    """
    overrides = overrides or {}
    paths = [point.path for point in points]
    for pattern in overrides:
        if not fnmatch.filter(paths, pattern):
            raise UserError(f"no quantization point matches the override {pattern!r}{did_you_mean(pattern, paths)}")
    return {point: _width(point, bits, overrides) for point in points}


def _width(point: QuantPoint, bits: Bits, overrides: Mapping[str, Bits]) -> int | None:
    matching = [chosen for pattern, chosen in overrides.items() if fnmatch.fnmatchcase(point.path, pattern)]
    chosen = matching[-1] if matching else bits
    width = chosen.weight if point.is_weight else chosen.act
    return width if matching or width is None else point.bits or width
