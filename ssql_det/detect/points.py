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

Placement ``integer`` has in addition, at 8 bits at every width: the image; both summands of each residual block; the
FPN's lateral results, each of its sums, which the top-down path and an output conv read, and its outputs; what the
RPN's and the mask predictors put out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import QuantPoint, Side, quant_points
from ssql_det.quant.points import INTEGER, PUBLISHED, extend_ranges_to_zero
from ssql_det.quant.points.family import INTEGER_OUTPUT_BITS, LAYER_TYPES
from ssql_det.quant.points.resnet import block_points, is_residual_block

SCOPES = ("backbone", "backbone+neck", "all")
PREDICTOR_BITS = 8

_PREDICTORS = ("objectness_logits", "anchor_deltas", "predictor", "cls_score", "bbox_pred")
_OF_BOXES = ("cls_score", "bbox_pred")  # what they put out is read once, in float


def detector_points(model: nn.Module, scope: str, placement: str = PUBLISHED) -> tuple[QuantPoint, ...]:
    """The points of a detector. Scope ``backbone`` is what was pretrained: stem to ``res5``, also in a C4 head;
    ``backbone+neck`` has the FPN in addition.

    >>> quantization = Quantization(detector, detector_points(detector, "all"))
    """
    if scope not in SCOPES:
        raise UserError(f"a scope is one of {', '.join(SCOPES)}; got {scope!r}")
    is_fpn = hasattr(model.backbone, "bottom_up")
    if scope == "backbone+neck" and not is_fpn:
        raise UserError("this detector has no FPN, which scope backbone+neck is about; use scope backbone or all")
    points = [*_backbone_points(model, is_fpn, placement)]
    if scope != "backbone" and is_fpn:
        points += _neck_points(model, placement)
    if scope == "all":
        points += _head_points(model, is_fpn, placement)
        _require_all_layers(model, points)
    return extend_ranges_to_zero(points, placement)


def _backbone_points(model: nn.Module, is_fpn: bool, placement: str) -> Iterator[QuantPoint]:
    root = "backbone.bottom_up" if is_fpn else "backbone"
    for point in quant_points(model.get_submodule(root), placement, _image_ends(model)):
        yield replace(point, path=f"{root}.{point.path}")
    if not hasattr(model.roi_heads, "res5"):
        return
    yield QuantPoint("roi_heads.res5.0", Side.INPUT)
    for name, block in model.get_submodule("roi_heads.res5").named_children():
        if is_residual_block(block):
            yield from block_points(f"roi_heads.res5.{name}", block, placement)


def _image_ends(model: nn.Module) -> tuple[float, float]:
    """Of normalized images with values from 0 to 255."""
    mean: Any = model.pixel_mean
    std: Any = model.pixel_std
    return float((-mean / std).min()), float(((255 - mean) / std).max())


def _neck_points(model: nn.Module, placement: str) -> Iterator[QuantPoint]:
    names = [name for name, _ in model.get_submodule("backbone").named_children()]
    results = placement == INTEGER
    for name in names:
        path = f"backbone.{name}"
        if name.startswith("fpn_lateral"):
            yield QuantPoint(path, Side.WEIGHT)
        elif name.startswith("fpn_output"):
            yield from _input_and_weight(path)
        if results and name.startswith("fpn_"):
            yield QuantPoint(path, Side.OUTPUT, INTEGER_OUTPUT_BITS)
    for call in range(sum(name.startswith("fpn_lateral") for name in names) - 1 if results else 0):
        yield QuantPoint("backbone", Side.OUTPUT, INTEGER_OUTPUT_BITS, function="add", call=call)


def _head_points(model: nn.Module, is_fpn: bool, placement: str) -> Iterator[QuantPoint]:
    for path, layer in model.named_modules():
        if not isinstance(layer, LAYER_TYPES):
            continue
        part, _, name = path.rpartition(".")
        if path == "proposal_generator.rpn_head.conv":
            yield from _input_and_weight(path) if is_fpn else [QuantPoint(path, Side.WEIGHT)]
        elif name in _PREDICTORS:
            yield from _input_and_weight(path, PREDICTOR_BITS)
            if placement == INTEGER and name not in _OF_BOXES:
                yield QuantPoint(path, Side.OUTPUT, INTEGER_OUTPUT_BITS)
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
        if isinstance(layer, LAYER_TYPES)
    )
    *_, last = model.get_submodule("roi_heads.res5").children()
    return name == first and is_residual_block(last)


def _require_all_layers(model: nn.Module, points: list[QuantPoint]) -> None:
    """A layer that no rule knows would stay float unseen, and the numbers would be of another thing."""
    weights = {point.path for point in points if point.is_weight}
    unknown = [path for path, layer in model.named_modules() if isinstance(layer, LAYER_TYPES) and path not in weights]
    if unknown:
        raise UserError(
            f"no rule says how {unknown[0]} is quantized ({len(unknown)} such layer(s)): known are Faster and Mask "
            "R-CNN, C4 and FPN; use --scope backbone"
        )
