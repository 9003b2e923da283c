"""Where a detector is quantized, C4 and FPN, with masks and without: the same kind of points as a network's.

Max-pool, nearest upsampling and ReLU keep a tensor on its grid; addition, average pooling, ROIAlign, a norm and a
conv's raw output leave it. So:

==============================  ====================================  ==================================
module                          its input                             point
==============================  ====================================  ==================================
ResNet                                                                as ``ssql_det.quant.quant_points``
FPN lateral convs               block outputs, on the grid            none
FPN output convs                lateral + upsampled sum               input
RPN conv                        FPN: raw conv outputs; C4: ``res4``   FPN: input, one range of all levels
RPN predictors                  ReLU of the RPN conv                  input, 8 bits
``res5.0`` of a C4 head         ROIAlign                              the block's input
box head, mask head             ROIAlign; ReLU                        input
mask deconv of a C4 head        ``res5``'s output, on the grid        none, but behind an extra norm
class, box, mask predictors     ReLU or average-pooled                input, 8 bits
==============================  ====================================  ==================================

Every weight is quantized; where the input is at 8 bits, so is the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import QuantPoint, Side, block_points, quant_points
from ssql_det.quant.points import is_residual_block

SCOPES = ("backbone", "all")
PREDICTOR_BITS = 8

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def detector_points(model: nn.Module, scope: str) -> tuple[QuantPoint, ...]:
    """The points of a detector. Scope ``backbone`` is what was pretrained: stem to ``res5``, also in a C4 head.

    >>> quantization = Quantization(detector, detector_points(detector, "all"))
    """
    if scope not in SCOPES:
        raise UserError(f"a scope is one of {', '.join(SCOPES)}; got {scope!r}")
    is_fpn = hasattr(model.backbone, "bottom_up")
    points = [*_backbone_points(model, is_fpn)]
    if scope == "all":
        points += _neck_and_head_points(model, is_fpn)
        _require_all_layers(model, points)
    return tuple(points)


def _backbone_points(model: nn.Module, is_fpn: bool) -> Iterator[QuantPoint]:
    root = "backbone.bottom_up" if is_fpn else "backbone"
    for point in quant_points(model.get_submodule(root)):
        yield replace(point, path=f"{root}.{point.path}")
    if not hasattr(model.roi_heads, "res5"):
        return
    yield QuantPoint("roi_heads.res5.0", Side.INPUT)
    for name, block in model.get_submodule("roi_heads.res5").named_children():
        if is_residual_block(block):
            yield from block_points(f"roi_heads.res5.{name}", block)


def _neck_and_head_points(model: nn.Module, is_fpn: bool) -> Iterator[QuantPoint]:
    for path, layer in model.named_modules():
        if not isinstance(layer, _LAYERS):
            continue
        part, _, name = path.rpartition(".")
        if part == "backbone" and name.startswith("fpn_lateral"):
            yield QuantPoint(path, Side.WEIGHT)
        elif part == "backbone" and name.startswith("fpn_output"):
            yield from _input_and_weight(path)
        elif path == "proposal_generator.rpn_head.conv":
            yield from _input_and_weight(path) if is_fpn else [QuantPoint(path, Side.WEIGHT)]
        elif name in ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor"):
            yield from _input_and_weight(path, PREDICTOR_BITS)
        elif part == "roi_heads.mask_head" and _is_fed_by_res5(model, name):
            yield QuantPoint(path, Side.WEIGHT)
        elif part in ("roi_heads.box_head", "roi_heads.mask_head"):
            yield from _input_and_weight(path)


def _input_and_weight(path: str, bits: int | None = None) -> tuple[QuantPoint, QuantPoint]:
    return QuantPoint(path, Side.INPUT, bits), QuantPoint(path, Side.WEIGHT, bits)


def _is_fed_by_res5(model: nn.Module, name: str) -> bool:
    """Whether a layer of the mask head reads ``res5``'s blocks as they are: a C4 head's first, without extra norm."""
    if not hasattr(model.roi_heads, "res5"):
        return False
    first = next(
        child
        for child, layer in model.get_submodule("roi_heads.mask_head").named_children()
        if isinstance(layer, _LAYERS)
    )
    *_, last = model.get_submodule("roi_heads.res5").children()
    return name == first and is_residual_block(last)


def _require_all_layers(model: nn.Module, points: list[QuantPoint]) -> None:
    """A layer that no rule knows would stay float unseen, and the numbers would be of another thing."""
    weights = {point.path for point in points if point.is_weight}
    unknown = [path for path, layer in model.named_modules() if isinstance(layer, _LAYERS) and path not in weights]
    if unknown:
        raise UserError(
            f"no rule says how {unknown[0]} is quantized ({len(unknown)} such layer(s)): known are Faster and Mask "
            "R-CNN, C4 and FPN; use --scope backbone"
        )
