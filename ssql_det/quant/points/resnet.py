"""ResNets of torchvision, timm, CIFAR and Detectron2, by structure, not by class.

As published (SSQL, ECCV 2022): every conv weight; the stem's output after ReLU and before the pool; the input of
``conv2`` (and ``conv3``) of each residual block; each block's output after the addition and ReLU. What the residual
branch and the shortcut add up is not quantized before the addition. The stem stays at 8 bits.

Placement ``integer`` has in addition the image, and both summands of a block at 8 bits, but for a shortcut that is the
block's input and lies on a grid already.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant.points.family import (
    FAMILIES,
    INTEGER,
    INTEGER_OUTPUT_BITS,
    PLACEMENTS,
    PUBLISHED,
    STEM_BITS,
    Family,
    Range,
    join_path,
    named_layers,
)
from ssql_det.quant.points.point import QuantPoint, Side


class ResNets(Family):
    placements = PLACEMENTS

    def matches(self, model: nn.Module) -> bool:
        return any(map(is_residual_block, model.modules()))

    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        for path, module in model.named_modules():
            if is_residual_block(module):
                yield from block_points(path, module, placement)
            elif _holds_stages(module):
                yield from _stem_points(path, module, placement, image_range)

    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        for path, module in model.named_modules():
            if is_residual_block(module):
                yield path
            elif _holds_stages(module):
                yield from (join_path(path, root) for root in ("conv1", "stem") if hasattr(module, root))


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


def block_points(path: str, block: nn.Module, placement: str = PUBLISHED) -> Iterator[QuantPoint]:
    """Every conv weight, the input of ``conv2`` and ``conv3``, and the block's output."""
    for name, layer in named_layers(block):
        if name in ("conv2", "conv3"):
            yield QuantPoint(join_path(path, name), Side.INPUT)
        if not isinstance(layer, nn.Linear):
            yield QuantPoint(join_path(path, name), Side.WEIGHT)
    if placement == INTEGER:
        yield from _summands(path, block)
    yield QuantPoint(path, Side.OUTPUT)


def _summands(path: str, block: nn.Module) -> Iterator[QuantPoint]:
    if getattr(block, "se", None) is not None:
        raise UserError(f"{path} squeezes and excites, which placement={INTEGER} has no rules for; use {PUBLISHED}")
    last = "3" if hasattr(block, "conv3") else "2"
    norm_is_inside = hasattr(block.get_submodule(f"conv{last}"), "norm")
    yield QuantPoint(
        join_path(path, f"conv{last}" if norm_is_inside else f"bn{last}"), Side.OUTPUT, INTEGER_OUTPUT_BITS
    )
    for name in ("downsample", "shortcut"):
        shortcut = getattr(block, name, None)
        first = next((child for child, _ in named_layers(shortcut)), None) if shortcut is not None else None
        if first is None:
            continue
        if first not in ("", "0"):  # pooled before
            yield QuantPoint(join_path(path, name, first), Side.INPUT)
        yield QuantPoint(join_path(path, name), Side.OUTPUT, INTEGER_OUTPUT_BITS)


def _stem_points(path: str, resnet: nn.Module, placement: str, image_range: Range | None) -> list[QuantPoint]:
    """The convs before the first stage, and their output where it is first to be had after ReLU."""
    children = dict(resnet.named_children())
    points = []
    for root in ("conv1", "stem"):
        for index, (name, _) in enumerate(named_layers(children[root]) if root in children else ()):
            layer_path = join_path(path, root, name)
            if index or placement == INTEGER:  # a deep stem has activations within
                points.append(QuantPoint(layer_path, Side.INPUT, STEM_BITS, fixed_range=None if index else image_range))
            points.append(QuantPoint(layer_path, Side.WEIGHT, STEM_BITS))
    for name in ("relu", "act1"):
        if name in children:
            return [*points, QuantPoint(join_path(path, name), Side.OUTPUT, STEM_BITS)]
    if "stem" in children:  # Detectron2's pools inside; the pool hides the zeros, so the range is [0, max]
        return [*points, QuantPoint(join_path(path, "stem"), Side.OUTPUT, STEM_BITS, include_zero=True)]
    after = next(name for name in children if name == "maxpool" or _is_stage(children[name]))
    return [*points, QuantPoint(join_path(path, after), Side.INPUT, STEM_BITS, include_zero=True)]


def _is_stage(module: nn.Module) -> bool:
    blocks = list(module.children())
    return bool(blocks) and all(is_residual_block(block) for block in blocks)


def _holds_stages(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_children()]
    return ("conv1" in names or "stem" in names) and any(_is_stage(child) for child in module.children())


FAMILIES.register("resnet")(ResNets())
