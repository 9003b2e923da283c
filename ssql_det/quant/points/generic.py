"""Networks of no known family: the weight and the input of every conv and linear layer, but not the input of the
first layer. The first and the last layer have 8 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

from ssql_det.quant.points.family import FAMILIES, STEM_BITS, Family, Range, named_layers
from ssql_det.quant.points.point import QuantPoint, Side

_logger = logging.getLogger(__name__)


class Generic(Family):
    def matches(self, model: nn.Module) -> bool:
        return next(named_layers(model), None) is not None

    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        _logger.warning(
            "%s is of no known family, so the generic rule places its quantization points: the weight and the input of "
            "every conv and linear layer, but not the input of the first one; first and last layer at %d bits",
            type(model).__name__,
            STEM_BITS,
        )
        names = [name for name, _ in named_layers(model)]
        for name in names:
            bits = STEM_BITS if name in (names[0], names[-1]) else None
            if name != names[0]:
                yield QuantPoint(name, Side.INPUT, bits)
            yield QuantPoint(name, Side.WEIGHT, bits)

    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        return (name for name, _ in named_layers(model))


FAMILIES.register("generic")(Generic())
