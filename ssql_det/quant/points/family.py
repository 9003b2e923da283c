"""The interface of a family, which recognizes its networks and lists the quantization points of a network."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch.fx
from torch import nn

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.core.registry import Registry
from ssql_det.quant.points.point import QuantPoint

# Placements: as in the SSQL paper; as integer-only inference needs; of detectors, as published, but with a range for
# each level of an FPN in the head that all levels share.
PUBLISHED, INTEGER, PER_LEVEL = "published", "integer", "per-level"
PLACEMENTS = (PUBLISHED, INTEGER, PER_LEVEL)
STEM_BITS = 8  # of the points of a network's stem, the layers before its first block
INTEGER_OUTPUT_BITS = 8  # of outputs that only ``integer`` quantizes, such as those that a residual connection adds

Range = tuple[float, float]  # the least and the greatest value
LAYER_TYPES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_logger = logging.getLogger(__name__)


class Family(ABC):
    """Networks that are quantized by the same rules, recognized by their structure, not by their class."""

    placements: tuple[str, ...] = (PUBLISHED,)  # the placements that the family supports

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether a network belongs to this family."""

    @abstractmethod
    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        """The points, in the order of modules, for one of the family's ``placements``.

        ``image_range``: of normalized images, which placement ``integer`` quantizes too; None: it is observed.
        """

    @abstractmethod
    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        """Paths of the blocks, which methods such as QDrop reconstruct one after the other; each layer with a point is
        in exactly one of them."""


FAMILIES: Registry[Family] = Registry("family of networks")


def find_family(model: nn.Module) -> Family:
    """The family of a network; if several match, the last one registered, so that users can replace a family."""
    name = type(model).__name__
    if isinstance(model, torch.fx.GraphModule):
        raise UserError(f"{name} is a traced graph, which has no blocks; find the points of the original model")
    family = next((each for each in FAMILIES.latest_first() if each.matches(model)), None)
    if family is None:
        raise UserError(f"{name} has nothing to quantize: it contains no Conv2d, ConvTranspose2d or Linear layer")
    return family


def quant_points(
    model: nn.Module, placement: str = PUBLISHED, image_range: Range | None = None
) -> tuple[QuantPoint, ...]:
    """The points of a network, in the order of its modules.

    ``image_range`` is the range of normalized images, which placement ``integer`` quantizes too; with ``None`` it is
    observed.

    >>> [point.key for point in quant_points(model)][:3]
    ['conv1:weight', 'act1:output', 'layer1.0.conv1:weight']
    """
    family = find_family(model)
    check_placement(placement, family.placements, type(model).__name__)
    points = extend_ranges_to_zero(family.find_points(model, placement, image_range), placement)
    quantized = {point.path for point in points if point.is_weight}
    float_layers = [path for path, _ in named_layers(model) if path not in quantized]
    if float_layers:
        _logger.info("%s: layers without a point, which stay float: %s", type(model).__name__, ", ".join(float_layers))
    return points


def extend_ranges_to_zero(points: Iterable[QuantPoint], placement: str) -> tuple[QuantPoint, ...]:
    """In placement ``integer`` all ranges of activations include 0, since padding adds zeros."""
    if placement != INTEGER:
        return tuple(points)
    return tuple(point if point.is_weight else replace(point, include_zero=True) for point in points)


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Paths of the blocks of a network, which methods such as QDrop reconstruct one after the other.

    >>> find_blocks(model)[:3]
    ('conv1', 'layer1.0', 'layer2.0')
    """
    return tuple(find_family(model).find_blocks(model))


def check_placement(placement: str, supported: tuple[str, ...], model_name: str) -> None:
    if placement not in PLACEMENTS:
        raise UserError(
            f"unknown placement {placement!r}{did_you_mean(placement, PLACEMENTS)} (known: {', '.join(PLACEMENTS)})"
        )
    if placement not in supported:
        raise UserError(f"{model_name} has no rules for placement={placement}; use placement={', '.join(supported)}")


def count_output_channels(layer: nn.Module) -> int:
    """The output channels of a conv or linear layer.

    >>> count_output_channels(nn.ConvTranspose2d(4, 6, 3, groups=2)), count_output_channels(nn.Linear(3, 5))
    (6, 5)
    """
    channels: Any = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return int(channels)


def named_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The conv and linear layers inside a module, with their paths; the path of the module itself is empty."""
    return ((name, child) for name, child in module.named_modules() if isinstance(child, LAYER_TYPES))


def join_path(*parts: str) -> str:
    return ".".join(part for part in parts if part)
