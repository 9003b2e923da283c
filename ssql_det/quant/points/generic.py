"""The family of networks that no other family matches.

The weight and the input of every conv and linear layer are quantized, but not the input of the first layer. The first
and the last layer, in the order of ``named_modules``, have 8 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

from ssql_det.quant.points.family import FAMILIES, Family, Range, named_layers
from ssql_det.quant.points.point import QuantPoint, Side

_FIRST_AND_LAST_BITS = 8  # of the first and the last layer
_logger = logging.getLogger(__name__)


class Generic(Family):
    def matches(self, model: nn.Module) -> bool:
        return next(named_layers(model), None) is not None

    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        _logger.warning(
            "%s is of no known family, so the generic rule places its quantization points: the weight and the input of "
            "every conv and linear layer, but not the input of the first one; first and last layer at %d bits",
            type(model).__name__,
            _FIRST_AND_LAST_BITS,
        )
        names = [name for name, _ in named_layers(model)]
        for name in names:
            bits = _FIRST_AND_LAST_BITS if name in (names[0], names[-1]) else None
            if name != names[0]:
                yield QuantPoint(name, Side.INPUT, bits)
            yield QuantPoint(name, Side.WEIGHT, bits)

    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        return (name for name, _ in named_layers(model))


FAMILIES.register("generic")(Generic())
