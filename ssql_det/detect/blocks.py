"""The blocks of a detector, in the order of its forward pass, which reconstruction learns one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ssql_det.detect.points import detector_points
from ssql_det.ptq.blocks import Block, FpnLevel, find_backbone_blocks
from ssql_det.quant.points import select_inside
from ssql_det.quant.points.resnet import is_residual_block


def detector_blocks(model: nn.Module, scope: str) -> tuple[Block, ...]:
    """The blocks of a detector that have points in a scope; each quantized weight is in exactly one of them.

    These are the stem and the residual blocks, the levels of the FPN, the head of the RPN, the blocks of ``res5`` in a
    C4 head, the box head with its predictor and the mask head with its predictor.
    """
    points = {point: None for point in detector_points(model, scope) if point.is_weight}
    return tuple(block for block in _find_blocks(model) if select_inside(points, block.modules))


def _find_blocks(model: nn.Module) -> Iterator[Block]:
    detector: Any = model
    is_fpn = hasattr(detector.backbone, "bottom_up")
    yield from find_backbone_blocks(model, "backbone.bottom_up" if is_fpn else "backbone")
    if is_fpn:
        yield from _find_levels(detector.backbone)
    yield Block("proposal_generator.rpn_head", ("proposal_generator.rpn_head",))
    heads = dict(detector.roi_heads.named_children())
    for name, module in heads["res5"].named_children() if "res5" in heads else ():
        if is_residual_block(module):
            path = f"roi_heads.res5.{name}"
            yield Block(path, (path,), has_regions=True)
    box_modules = tuple(f"roi_heads.{name}" for name in ("box_head", "box_predictor") if name in heads)
    yield Block("roi_heads.box_head", box_modules, has_regions=True)
    if "mask_head" in heads:
        layers = tuple(f"roi_heads.mask_head.{name}" for name, _ in heads["mask_head"].named_children())
        yield Block("roi_heads.mask_head", layers, has_regions=True)


def _find_levels(fpn: Any) -> Iterator[Block]:
    """The levels of an FPN, the coarsest first."""
    numbers = sorted(
        (int(name.removeprefix("fpn_lateral")) for name, _ in fpn.named_children() if name.startswith("fpn_lateral")),
        reverse=True,
    )
    coarser = ""
    for number in numbers:
        lateral, output = f"backbone.fpn_lateral{number}", f"backbone.fpn_output{number}"
        if coarser:
            yield FpnLevel(output, (lateral, output), coarser, is_average=fpn._fuse_type == "avg")
        else:
            yield Block(output, (lateral, output))
        coarser = output
