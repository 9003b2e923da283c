"""Where a network is quantized: a list of points, by the rules of the family that knows the network.

================= ======================================================================
point             a place, as a value; the bits that it has at a width
family            what a family is; the points and the blocks of a network
generic           networks of no known family
resnet            torchvision's, timm's, CIFAR's and Detectron2's
inverted_residual MobileNetV2 and EfficientNet, torchvision's and timm's
vit               vision transformers, torchvision's and timm's
================= ======================================================================

A family is one file and registers itself in ``FAMILIES``; the one that was registered last is asked first.
"""

from ssql_det.core.registry import import_modules
from ssql_det.quant.points import generic  # noqa: F401 (registered first, it is asked last)
from ssql_det.quant.points.family import (
    FAMILIES,
    INTEGER,
    PLACEMENTS,
    PUBLISHED,
    Family,
    extend_ranges_to_zero,
    find_blocks,
    quant_points,
)
from ssql_det.quant.points.point import QuantPoint, Side, assign_bits

__all__ = [
    "FAMILIES",
    "INTEGER",
    "PLACEMENTS",
    "PUBLISHED",
    "Family",
    "QuantPoint",
    "Side",
    "assign_bits",
    "extend_ranges_to_zero",
    "find_blocks",
    "quant_points",
]

all(import_modules(__name__, __path__))
