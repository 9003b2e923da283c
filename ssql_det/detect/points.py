"""Quantization points of a detector: which tensors of Faster and Mask R-CNN, C4 and FPN, are quantized.

Max-pool, nearest upsampling and ReLU keep a quantized tensor on its quantization grid, so their outputs need no point.
The outputs of additions, average pooling, ROIAlign, norms and convs are off the grid. So the placement ``published``
has these points:

==============================  ====================================  ==================================
module                          its input                             point
==============================  ====================================  ==================================
ResNet                                                                as ``ssql_det.quant.quant_points``
FPN lateral convs               block outputs, on the grid            none
FPN output convs                lateral + upsampled sum               input
RPN conv                        FPN: raw conv outputs; C4: ``res4``   FPN: input, one range for all levels; C4: none
RPN predictors                  ReLU of the RPN conv                  input, 8 bits
``res5.0`` of a C4 head         ROIAlign                              the block's input
box head, mask head             ROIAlign; ReLU                        input
mask deconv of a C4 head        ``res5``'s output, on the grid        none; behind an extra norm: input
class, box, mask predictors     ReLU or average-pooled                input, 8 bits
==============================  ====================================  ==================================

Every weight of the scope is quantized. The predictors' inputs and weights have 8 bits at every bit-width.

The placement ``integer``, for integer-only inference, adds points of 8 bits at every bit-width: the image; both
summands of each residual block; the outputs of the FPN's lateral convs, additions (read by the top-down path and an
output conv) and output convs; the outputs of the RPN's predictors and of the mask predictor.

The placement ``per-level`` is as published, but all inputs of the RPN's layers have a range for each level of the FPN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import QuantPoint, Side, quant_points
from ssql_det.quant.points import INTEGER, PER_LEVEL, PUBLISHED, extend_ranges_to_zero
from ssql_det.quant.points.family import INTEGER_OUTPUT_BITS, LAYER_TYPES
from ssql_det.quant.points.resnet import block_points, is_residual_block

SCOPES = ("backbone", "backbone+neck", "all")
PREDICTOR_BITS = 8

_PREDICTORS = ("objectness_logits", "anchor_deltas", "predictor", "cls_score", "bbox_pred")
_BOX_PREDICTORS = ("cls_score", "bbox_pred")  # only float arithmetic reads their outputs, so these need no point


def detector_points(model: nn.Module, scope: str, placement: str = PUBLISHED) -> tuple[QuantPoint, ...]:
    """The quantization points of a detector in a scope, the part of the detector that is quantized.

    Scope ``backbone`` is the stem to ``res5``, also where ``res5`` is in a C4 head; ``backbone+neck`` adds the FPN, and
    ``all`` adds the RPN and the heads.
    """
    if scope not in SCOPES:
        raise UserError(f"the scope must be one of {', '.join(SCOPES)}; got {scope!r}")
    is_fpn = hasattr(model.backbone, "bottom_up")
    if scope == "backbone+neck" and not is_fpn:
        raise UserError("scope backbone+neck needs an FPN, which this detector does not have; use backbone or all")
    if placement == PER_LEVEL and not is_fpn:
        raise UserError("placement=per-level needs an FPN, which this detector does not have; use placement=published")
    points = [*_find_backbone_points(model, is_fpn, INTEGER if placement == INTEGER else PUBLISHED)]
    if scope != "backbone" and is_fpn:
        points += _find_neck_points(model, placement)
    if scope == "all":
        points += _find_head_points(model, is_fpn, placement)
        _check_all_layers(model, points)
    if placement == PER_LEVEL:
        points = [each for point in points for each in _split_levels(model, point)]
    return extend_ranges_to_zero(points, placement)


def _find_backbone_points(model: nn.Module, is_fpn: bool, placement: str) -> Iterator[QuantPoint]:
    root = "backbone.bottom_up" if is_fpn else "backbone"
    for point in quant_points(model.get_submodule(root), placement, _get_image_range(model)):
        yield replace(point, path=f"{root}.{point.path}")
    if not hasattr(model.roi_heads, "res5"):
        return
    yield QuantPoint("roi_heads.res5.0", Side.INPUT)
    for name, block in model.get_submodule("roi_heads.res5").named_children():
        if is_residual_block(block):
            yield from block_points(f"roi_heads.res5.{name}", block, placement)


def _get_image_range(model: nn.Module) -> tuple[float, float]:
    """The range of normalized images, whose values are 0 to 255 before normalization."""
    mean: Any = model.pixel_mean
    std: Any = model.pixel_std
    return float((-mean / std).min()), float(((255 - mean) / std).max())


def _find_neck_points(model: nn.Module, placement: str) -> Iterator[QuantPoint]:
    names = [name for name, _ in model.get_submodule("backbone").named_children()]
    is_integer = placement == INTEGER
    for name in names:
        path = f"backbone.{name}"
        if name.startswith("fpn_lateral"):
            yield QuantPoint(path, Side.WEIGHT)
        elif name.startswith("fpn_output"):
            yield from _make_input_and_weight_points(path)
        if is_integer and name.startswith("fpn_"):
            yield QuantPoint(path, Side.OUTPUT, INTEGER_OUTPUT_BITS)
    num_sums = sum(name.startswith("fpn_lateral") for name in names) - 1  # the coarsest level adds nothing
    for call in range(num_sums if is_integer else 0):
        yield QuantPoint("backbone", Side.OUTPUT, INTEGER_OUTPUT_BITS, function="add", call=call)


def _find_head_points(model: nn.Module, is_fpn: bool, placement: str) -> Iterator[QuantPoint]:
    for path, layer in model.named_modules():
        if not isinstance(layer, LAYER_TYPES):
            continue
        parent, _, name = path.rpartition(".")
        if path == "proposal_generator.rpn_head.conv":
            yield from _make_input_and_weight_points(path) if is_fpn else [QuantPoint(path, Side.WEIGHT)]
        elif name in _PREDICTORS:
            yield from _make_input_and_weight_points(path, PREDICTOR_BITS)
            if placement == INTEGER and name not in _BOX_PREDICTORS:
                yield QuantPoint(path, Side.OUTPUT, INTEGER_OUTPUT_BITS)
        elif parent == "roi_heads.mask_head" and _reads_res5(model, name):
            yield QuantPoint(path, Side.WEIGHT)
        elif parent in ("roi_heads.box_head", "roi_heads.mask_head"):
            yield from _make_input_and_weight_points(path)


def _split_levels(model: Any, point: QuantPoint) -> Iterator[QuantPoint]:
    """A point for each level that the RPN's head is called with; any other point stays as it is."""
    if point.is_weight or not point.path.startswith("proposal_generator.rpn_head."):
        yield point
        return
    for level in range(len(model.proposal_generator.in_features)):
        yield replace(point, call=level)


def _make_input_and_weight_points(path: str, bits: int | None = None) -> tuple[QuantPoint, QuantPoint]:
    return QuantPoint(path, Side.INPUT, bits), QuantPoint(path, Side.WEIGHT, bits)


def _reads_res5(model: nn.Module, name: str) -> bool:
    """Whether a layer of the mask head reads quantized output of ``res5``: the first one, if no norm precedes it."""
    if not hasattr(model.roi_heads, "res5"):
        return False
    first = next(
        child
        for child, layer in model.get_submodule("roi_heads.mask_head").named_children()
        if isinstance(layer, LAYER_TYPES)
    )
    *_, last = model.get_submodule("roi_heads.res5").children()
    return name == first and is_residual_block(last)


def _check_all_layers(model: nn.Module, points: list[QuantPoint]) -> None:
    """Raise a UserError for a layer without a point: it would stay float, although the scope is ``all``."""
    weights = {point.path for point in points if point.is_weight}
    unsupported = [
        path for path, layer in model.named_modules() if isinstance(layer, LAYER_TYPES) and path not in weights
    ]
    if unsupported:
        raise UserError(
            f"{unsupported[0]} has no quantization point ({len(unsupported)} such layer(s)): supported are "
            "Faster and Mask R-CNN, C4 and FPN; use --scope backbone"
        )
