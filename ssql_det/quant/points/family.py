"""What a family of networks is to the suite: it knows its networks, and says where they are quantized."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch.fx
from torch import nn

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.registry import Registry
from ssql_det.quant.points.point import QuantPoint

PUBLISHED, INTEGER = "published", "integer"
PLACEMENTS = (PUBLISHED, INTEGER)
STEM_BITS = 8
INTEGER_OUTPUT_BITS = 8  # of what is added up, in placement ``integer``

Range = tuple[float, float]
LAYER_TYPES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_logger = logging.getLogger(__name__)


class Family(ABC):
    """Networks that are quantized by the same rules, known by their structure, not by their class."""

    placements: tuple[str, ...] = (PUBLISHED,)  # that it has rules for

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether a network is of this family."""

    @abstractmethod
    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        """In the order of its modules; ``image`` has the ends of its point, in placement ``integer``."""

    @abstractmethod
    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        """Paths of the parts that are reconstructed one after the other: each layer with a point is in one of them."""


FAMILIES: Registry[Family] = Registry("family of networks")


def find_family(model: nn.Module) -> Family:
    """The family that knows a network: of several the one that was registered last, so that a user's comes first."""
    name = type(model).__name__
    if isinstance(model, torch.fx.GraphModule):
        raise UserError(f"{name} is a traced graph, which has lost its blocks; place the points on the model itself")
    family = next((each for each in FAMILIES.latest_first() if each.matches(model)), None)
    if family is None:
        raise UserError(f"{name} has nothing to quantize: no Conv2d, ConvTranspose2d or Linear layer in it")
    return family


def quant_points(
    model: nn.Module, placement: str = PUBLISHED, image_range: Range | None = None
) -> tuple[QuantPoint, ...]:
    """The points of a network, in the order of its modules. ``image``: the least and the greatest value of its images,
    normalized, for placement ``integer``; without, they are observed.

    >>> [point.key for point in quant_points(torchvision.models.resnet18())][:3]
    ['conv1:weight', 'relu:output', 'layer1.0.conv1:weight']
    """
    family = find_family(model)
    require_placement(placement, family.placements, type(model).__name__)
    points = extend_ranges_to_zero(family.find_points(model, placement, image_range), placement)
    quantized = {point.path for point in points if point.is_weight}
    left = [path for path, _ in named_layers(model) if path not in quantized]
    if left:
        _logger.info("%s: %s stay float", type(model).__name__, ", ".join(left))
    return points


def extend_ranges_to_zero(points: Iterable[QuantPoint], placement: str) -> tuple[QuantPoint, ...]:
    """An integer machine pads with zeros, so each of its grids has one."""
    reaches_zero = placement == INTEGER
    return tuple(
        replace(point, include_zero=True) if reaches_zero and not point.is_weight else point for point in points
    )


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Paths of the parts of a network that are reconstructed one after the other.

    >>> find_blocks(torchvision.models.resnet18())[:3]
    ('conv1', 'layer1.0', 'layer1.1')
    """
    return tuple(find_family(model).find_blocks(model))


def require_placement(placement: str, known: tuple[str, ...], what: str) -> None:
    if placement not in PLACEMENTS:
        raise UserError(
            f"unknown placement {placement!r}{did_you_mean(placement, PLACEMENTS)} (known: {', '.join(PLACEMENTS)})"
        )
    if placement not in known:
        raise UserError(f"{what} has no rules for placement={placement}; use placement={', '.join(known)}")


def named_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convs and linear layers inside, by path."""
    return ((name, child) for name, child in module.named_modules() if isinstance(child, LAYER_TYPES))


def join_path(*parts: str) -> str:
    return ".".join(part for part in parts if part)
