"""ResNets of torchvision, timm, CIFAR and Detectron2, recognized by their structure, not by their class.

As published (SSQL, ECCV 2022): every conv weight; the stem's output after ReLU and before the max-pool; in each
residual block the input of ``conv2`` (and ``conv3``) and the block's output after the addition and ReLU. The outputs of
the last conv and of the shortcut are not quantized before the addition. The stem stays at 8 bits.

Placement ``integer`` adds the image and both summands of each block at 8 bits. A shortcut that is the identity needs no
point: the block's input is quantized already.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant.points.family import (
    FAMILIES,
    INTEGER,
    INTEGER_OUTPUT_BITS,
    PUBLISHED,
    STEM_BITS,
    Family,
    Range,
    join_path,
    named_layers,
)
from ssql_det.quant.points.point import QuantPoint, Side


class ResNets(Family):
    placements = (PUBLISHED, INTEGER)

    def matches(self, model: nn.Module) -> bool:
        return any(map(is_residual_block, model.modules()))

    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        for path, module in model.named_modules():
            if is_residual_block(module):
                yield from block_points(path, module, placement)
            elif _has_stages(module):
                yield from _stem_points(path, module, placement, image_range)

    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        for path, module in model.named_modules():
            if is_residual_block(module):
                yield path
            elif _has_stages(module):
                yield from (join_path(path, name) for name in ("conv1", "stem") if hasattr(module, name))


def is_residual_block(module: nn.Module) -> bool:
    """Whether a module is a BasicBlock or Bottleneck (post-activation) of torchvision, timm, CIFAR or Detectron2."""
    has_shortcut = hasattr(module, "downsample") or hasattr(module, "shortcut")
    has_convs = all(isinstance(getattr(module, name, None), nn.Conv2d) for name in ("conv1", "conv2"))
    return has_shortcut and has_convs and _is_post_activation(module)


def _is_post_activation(block: nn.Module) -> bool:
    """Whether norms follow their convs. In pre-activation blocks norms come first, and no ReLU follows the addition."""
    if hasattr(block.conv1, "norm"):  # in Detectron2 the norm is a child of its conv
        return True
    order = [name for name, _ in block.named_children()]
    return "bn1" in order and order.index("conv1") < order.index("bn1")


def block_points(path: str, block: nn.Module, placement: str = PUBLISHED) -> Iterator[QuantPoint]:
    """Every conv weight, the input of ``conv2`` and ``conv3``, the block's output; for ``integer`` both summands."""
    for name, layer in named_layers(block):
        if name in ("conv2", "conv3"):
            yield QuantPoint(join_path(path, name), Side.INPUT)
        if not isinstance(layer, nn.Linear):
            yield QuantPoint(join_path(path, name), Side.WEIGHT)
    if placement == INTEGER:
        yield from _summand_points(path, block)
    yield QuantPoint(path, Side.OUTPUT)


def _summand_points(path: str, block: nn.Module) -> Iterator[QuantPoint]:
    if getattr(block, "se", None) is not None:
        raise UserError(
            f"{path} has squeeze-and-excitation, which placement={INTEGER} does not support; use placement={PUBLISHED}"
        )
    last_number = "3" if hasattr(block, "conv3") else "2"
    is_norm_in_conv = hasattr(block.get_submodule(f"conv{last_number}"), "norm")
    last_module = f"conv{last_number}" if is_norm_in_conv else f"bn{last_number}"
    yield QuantPoint(join_path(path, last_module), Side.OUTPUT, INTEGER_OUTPUT_BITS)
    for name in ("downsample", "shortcut"):
        shortcut = getattr(block, name, None)
        conv = next((child for child, _ in named_layers(shortcut)), None) if shortcut is not None else None
        if conv is None:
            continue
        if conv not in ("", "0"):  # the conv follows a pool, so no point quantizes its input yet
            yield QuantPoint(join_path(path, name, conv), Side.INPUT)
        yield QuantPoint(join_path(path, name), Side.OUTPUT, INTEGER_OUTPUT_BITS)


def _stem_points(path: str, resnet: nn.Module, placement: str, image_range: Range | None) -> list[QuantPoint]:
    """Points of the convs before the first stage, and of their output after ReLU."""
    children = dict(resnet.named_children())
    points = []
    for stem_name in ("conv1", "stem"):
        for index, (name, _) in enumerate(named_layers(children[stem_name]) if stem_name in children else ()):
            layer_path = join_path(path, stem_name, name)
            if index or placement == INTEGER:  # the image, or the activations between the convs of a stem
                points.append(QuantPoint(layer_path, Side.INPUT, STEM_BITS, fixed_range=None if index else image_range))
            points.append(QuantPoint(layer_path, Side.WEIGHT, STEM_BITS))
    for name in ("relu", "act1"):
        if name in children:
            return [*points, QuantPoint(join_path(path, name), Side.OUTPUT, STEM_BITS)]
    if "stem" in children:  # Detectron2's stem ends in a max-pool, whose output may lack the zeros of ReLU
        return [*points, QuantPoint(join_path(path, "stem"), Side.OUTPUT, STEM_BITS, include_zero=True)]
    next_module = next(name for name in children if name == "maxpool" or _is_stage(children[name]))
    return [*points, QuantPoint(join_path(path, next_module), Side.INPUT, STEM_BITS, include_zero=True)]


def _is_stage(module: nn.Module) -> bool:
    """Whether all children of a module are residual blocks."""
    children = list(module.children())
    return bool(children) and all(is_residual_block(child) for child in children)


def _has_stages(module: nn.Module) -> bool:
    """Whether a module is a ResNet: it has a stem and stages of residual blocks."""
    names = [name for name, _ in module.named_children()]
    return ("conv1" in names or "stem" in names) and any(_is_stage(child) for child in module.children())


FAMILIES.register("resnet")(ResNets())
