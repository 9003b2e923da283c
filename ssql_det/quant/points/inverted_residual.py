"""Networks of inverted residual blocks, of torchvision and timm: MobileNetV2 (Sandler et al., CVPR 2018) and
EfficientNet (Tan and Le, ICML 2019).

The points are like those of a ResNet: every conv weight; the output of the stem; in each block, the input of every conv
except the first (whose input is the output of the previous block) and the block's output; the output of the conv after
the blocks. The outputs of the stem and of that conv are quantized after norm and activation. The weight and the output
of the stem have 8 bits.

Placement ``integer`` adds points at 8 bits: the image, and one in each block with a residual connection, the output of
the norm after the last conv. It does not support blocks with squeeze-and-excitation.
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


class InvertedResiduals(Family):
    placements = (PUBLISHED, INTEGER)

    def matches(self, model: nn.Module) -> bool:
        return any(map(_is_block, model.modules()))

    def find_points(self, model: nn.Module, placement: str, image_range: Range | None) -> Iterator[QuantPoint]:
        for index, path in enumerate(self.find_blocks(model)):
            if _is_block(model.get_submodule(path)):
                yield from _block_points(path, model.get_submodule(path), placement)
                continue
            is_stem = index == 0
            bits = STEM_BITS if is_stem else None
            if placement == INTEGER and is_stem:
                yield QuantPoint(path, Side.INPUT, bits, fixed_range=image_range)
            yield QuantPoint(path, Side.WEIGHT, bits)
            yield QuantPoint(_find_output_module(path, model), Side.OUTPUT, bits)

    def find_blocks(self, model: nn.Module) -> Iterator[str]:
        """The inverted residual blocks, and as further blocks the convs before and after them; not the classifier."""
        parent = None
        for path, module in model.named_modules():
            if parent is not None and path.startswith(parent):
                continue
            if _is_block(module) or isinstance(module, nn.Conv2d):
                parent = f"{path}."
                yield path


def _is_block(module: nn.Module) -> bool:
    """Whether a module is an inverted residual block: in torchvision it has a sequence, ``conv`` or ``block``, with a
    depthwise conv; in timm it has the children ``bn1`` and ``conv_dw`` (depthwise) or ``conv_exp`` (expanding)."""
    body = getattr(module, "conv", getattr(module, "block", None))
    if isinstance(body, nn.Sequential):
        body_layers = [layer for _, layer in named_layers(body)]
        is_depthwise = any(isinstance(each, nn.Conv2d) and each.groups == each.in_channels > 1 for each in body_layers)
        # A block of ConvNeXt also has a depthwise conv, but its other layers are linear.
        return is_depthwise and not any(isinstance(each, nn.Linear) for each in body_layers)
    return hasattr(module, "bn1") and (hasattr(module, "conv_dw") or hasattr(module, "conv_exp"))


def _block_points(path: str, block: nn.Module, placement: str) -> Iterator[QuantPoint]:
    first, *_ = names = [name for name, _ in named_layers(block)]
    for name in names:
        if name != first:
            yield QuantPoint(join_path(path, name), Side.INPUT)
        yield QuantPoint(join_path(path, name), Side.WEIGHT)
    if placement == INTEGER:
        if any(isinstance(each, nn.AdaptiveAvgPool2d) or hasattr(each, "conv_reduce") for each in block.modules()):
            raise UserError(
                f"{path} has squeeze-and-excitation, which placement={INTEGER} does not support; "
                f"use placement={PUBLISHED}"
            )
        # Whether the block has a residual connection, in torchvision and in timm.
        if getattr(block, "use_res_connect", getattr(block, "has_skip", False)):
            *_, norm = (name for name, each in block.named_modules() if isinstance(each, nn.BatchNorm2d))
            yield QuantPoint(join_path(path, norm), Side.OUTPUT, INTEGER_OUTPUT_BITS)
    yield QuantPoint(path, Side.OUTPUT)


def _find_output_module(path: str, model: nn.Module) -> str:
    """The module that outputs a conv's result after norm and activation: torchvision's sequence, or timm's norm,
    which includes the activation."""
    parent, _, name = path.rpartition(".")
    if isinstance(model.get_submodule(parent), nn.Sequential):
        return parent
    names = [child for child, _ in model.get_submodule(parent).named_children()]
    return join_path(parent, names[names.index(name) + 1])


FAMILIES.register("inverted residual")(InvertedResiduals())
