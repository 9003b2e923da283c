"""Where a network is quantized: a list of :class:`QuantPoint`, found from a network's structure.

In a ResNet (SSQL, ECCV 2022): every conv weight; the stem's output after ReLU and before the pool; the input
of ``conv2`` (and ``conv3``) of each residual block; each block's output after the addition and ReLU. What the
residual branch and the shortcut add up is not quantized before the addition. The stem stays at 8 bits.

Known ResNets are torchvision's, timm's, CIFAR's and Detectron2's, by structure, not by class. A network
without residual blocks gets the generic rule, and a log line says so.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch.fx
from torch import nn

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.quant.bits import Bits

STEM_BITS = 8

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_logger = logging.getLogger(__name__)


class Side(Enum):
    """What of a module is quantized."""

    WEIGHT = "weight"
    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True)
class QuantPoint:
    """One place where a network is quantized: one side of the module at ``path``.

    ``bits`` holds the place at a width of its own whenever its side is quantized at all. ``from_zero`` widens
    the observed range down to 0: for a ReLU's output that can only be seen after a max-pool.

    >>> QuantPoint("layer1.0.conv2", Side.INPUT).key
    'layer1.0.conv2:input'
    """

    path: str
    side: Side
    bits: int | None = None
    from_zero: bool = False

    @property
    def key(self) -> str:
        return f"{self.path}:{self.side.value}"

    @property
    def is_weight(self) -> bool:
        return self.side is Side.WEIGHT


def quant_points(model: nn.Module) -> tuple[QuantPoint, ...]:
    """The points of a network, in the order of its modules.

    >>> [point.key for point in quant_points(torchvision.models.resnet18())][:3]
    ['conv1:weight', 'relu:output', 'layer1.0.conv1:weight']
    """
    name = type(model).__name__
    if isinstance(model, torch.fx.GraphModule):
        raise UserError(f"{name} is a traced graph, which has lost its blocks; place the points on the model itself")
    points: list[QuantPoint] = []
    for path, module in model.named_modules():
        if is_residual_block(module):
            points += block_points(path, module)
        elif _holds_stages(module):
            points += _stem_points(path, module)
    if points:
        _report_float_layers(name, model, points)
        return tuple(points)
    points = _generic_points(model)
    if not points:
        raise UserError(f"{name} has nothing to quantize: no Conv2d, ConvTranspose2d or Linear layer in it")
    _logger.warning(
        "%s has no residual blocks, so the generic rule places its quantization points: the weight of every conv and "
        "linear layer, and its input but for the first; first and last layer at %d bits",
        name,
        STEM_BITS,
    )
    return tuple(points)


def is_residual_block(module: nn.Module) -> bool:
    """A BasicBlock or Bottleneck of torchvision, timm, CIFAR nets or Detectron2."""
    has_shortcut = hasattr(module, "downsample") or hasattr(module, "shortcut")
    has_convs = all(isinstance(getattr(module, name, None), nn.Conv2d) for name in ("conv1", "conv2"))
    return has_shortcut and has_convs and _normalizes_after_its_convs(module)


def _normalizes_after_its_convs(block: nn.Module) -> bool:
    """Not so in pre-activation blocks, whose output is no ReLU's: there the norm comes first."""
    if hasattr(block.conv1, "norm"):  # Detectron2's convs carry theirs
        return True
    order = [name for name, _ in block.named_children()]
    return "bn1" in order and order.index("conv1") < order.index("bn1")


def block_points(path: str, block: nn.Module) -> list[QuantPoint]:
    """Every conv weight, the input of ``conv2`` and ``conv3``, and the block's output."""
    points = []
    for name, layer in _layers(block):
        if name in ("conv2", "conv3"):
            points.append(QuantPoint(_join(path, name), Side.INPUT))
        if not isinstance(layer, nn.Linear):
            points.append(QuantPoint(_join(path, name), Side.WEIGHT))
    return [*points, QuantPoint(path, Side.OUTPUT)]


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


def _stem_points(path: str, resnet: nn.Module) -> list[QuantPoint]:
    """The convs before the first stage, and their output where it is first to be had after ReLU."""
    children = dict(resnet.named_children())
    points = []
    for root in ("conv1", "stem"):
        for index, (name, _) in enumerate(_layers(children[root]) if root in children else ()):
            layer_path = _join(path, root, name)
            if index:  # a deep stem has activations within
                points.append(QuantPoint(layer_path, Side.INPUT, STEM_BITS))
            points.append(QuantPoint(layer_path, Side.WEIGHT, STEM_BITS))
    for name in ("relu", "act1"):
        if name in children:
            return [*points, QuantPoint(_join(path, name), Side.OUTPUT, STEM_BITS)]
    if "stem" in children:  # Detectron2's pools inside; the pool hides the zeros, so the range is [0, max]
        return [*points, QuantPoint(_join(path, "stem"), Side.OUTPUT, STEM_BITS, from_zero=True)]
    after = next(name for name in children if name == "maxpool" or _is_stage(children[name]))
    return [*points, QuantPoint(_join(path, after), Side.INPUT, STEM_BITS, from_zero=True)]


def _generic_points(model: nn.Module) -> list[QuantPoint]:
    layers = [name for name, _ in _layers(model)]
    points = []
    for name in layers:
        own = STEM_BITS if name in (layers[0], layers[-1]) else None
        if name != layers[0]:
            points.append(QuantPoint(name, Side.INPUT, own))
        points.append(QuantPoint(name, Side.WEIGHT, own))
    return points


def _report_float_layers(name: str, model: nn.Module, points: Sequence[QuantPoint]) -> None:
    quantized = {point.path for point in points if point.is_weight}
    left = [path for path, _ in _layers(model) if path not in quantized]
    if left:
        _logger.info("%s: outside its residual network %s stay float", name, ", ".join(left))


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, child) for name, child in module.named_modules() if isinstance(child, _LAYERS))


def _is_stage(module: nn.Module) -> bool:
    blocks = list(module.children())
    return bool(blocks) and all(is_residual_block(block) for block in blocks)


def _holds_stages(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_children()]
    return ("conv1" in names or "stem" in names) and any(_is_stage(child) for child in module.children())


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
