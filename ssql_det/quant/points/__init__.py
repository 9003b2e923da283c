"""Which tensors of a network are quantized: a list of points, from the rules of the network's family.

================= ======================================================================
point             a quantization point, and the bit-widths of points
family            the interface of a family; finds the points and the blocks of a network
generic           networks of no other family
resnet            ResNets of torchvision, timm, CIFAR and Detectron2
inverted_residual MobileNetV2 and EfficientNet of torchvision and timm
vit               vision transformers of torchvision and timm
================= ======================================================================

A family is one file and registers itself in ``FAMILIES``. Families registered later are tried first.
"""

from ssql_det.core.registry import import_modules
from ssql_det.quant.points import generic  # noqa: F401 (registered first, so it is tried last)
from ssql_det.quant.points.family import (
    FAMILIES,
    INTEGER,
    PER_LEVEL,
    PLACEMENTS,
    PUBLISHED,
    Family,
    extend_ranges_to_zero,
    find_blocks,
    quant_points,
)
from ssql_det.quant.points.point import QuantPoint, Side, assign_bits, matches_pattern, select_inside

__all__ = [
    "FAMILIES",
    "INTEGER",
    "PER_LEVEL",
    "PLACEMENTS",
    "PUBLISHED",
    "Family",
    "QuantPoint",
    "Side",
    "assign_bits",
    "extend_ranges_to_zero",
    "find_blocks",
    "matches_pattern",
    "quant_points",
    "select_inside",
]

all(import_modules(__name__, __path__))  # each family registers itself
