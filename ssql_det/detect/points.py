"""Quantization points of a detector: which tensors of Faster and Mask R-CNN, C4 and FPN, are quantized.

A tensor that was quantized stays on its grid through max-pool, nearest upsampling and ReLU, and needs no second point.
An addition, average pooling, ROIAlign, a norm and a conv's raw output leave the grid. So the placement ``published``
has these points:

==============================  ====================================  ==================================
module                          its input                             point
==============================  ====================================  ==================================
ResNet                                                                as ``ssql_det.quant.quant_points``
FPN lateral convs               block outputs, on the grid            none
FPN output convs                lateral + upsampled sum               input
RPN conv                        FPN: raw conv outputs; C4: ``res4``   FPN: input, one range for all levels
RPN predictors                  ReLU of the RPN conv                  input, 8 bits
``res5.0`` of a C4 head         ROIAlign                              the block's input
box head, mask head             ROIAlign; ReLU                        input
mask deconv of a C4 head        ``res5``'s output, on the grid        none; input behind an extra norm
class, box, mask predictors     ReLU or average-pooled                input, 8 bits
==============================  ====================================  ==================================

Every weight is quantized, at 8 bits where the input has 8 bits at every bit-width.

The placement ``integer`` adds, at 8 bits at every bit-width: the image; both summands of each residual block; the
FPN's lateral results, its sums (each is read by the top-down path and by an output conv) and its outputs; the outputs
of the RPN's and of the mask predictors.
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
_BOX_PREDICTORS = ("cls_score", "bbox_pred")  # their outputs are read by float arithmetic alone


def detector_points(model: nn.Module, scope: str, placement: str = PUBLISHED) -> tuple[QuantPoint, ...]:
    """The quantization points of a detector in a scope.

    ``backbone`` is what was pretrained: stem to ``res5``, also in a C4 head. ``backbone+neck`` adds the FPN, ``all``
    everything else.
    """
    if scope not in SCOPES:
        raise UserError(f"the scope must be one of {', '.join(SCOPES)}; got {scope!r}")
    is_fpn = hasattr(model.backbone, "bottom_up")
    if scope == "backbone+neck" and not is_fpn:
        raise UserError("scope backbone+neck needs an FPN, which this detector does not have; use backbone or all")
    points = [*_backbone_points(model, is_fpn, placement)]
    if scope != "backbone" and is_fpn:
        points += _neck_points(model, placement)
    if scope == "all":
        points += _head_points(model, is_fpn, placement)
        _check_all_layers(model, points)
    return extend_ranges_to_zero(points, placement)


def _backbone_points(model: nn.Module, is_fpn: bool, placement: str) -> Iterator[QuantPoint]:
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
    """The range of normalized images, whose values were 0 to 255."""
    mean: Any = model.pixel_mean
    std: Any = model.pixel_std
    return float((-mean / std).min()), float(((255 - mean) / std).max())


def _neck_points(model: nn.Module, placement: str) -> Iterator[QuantPoint]:
    names = [name for name, _ in model.get_submodule("backbone").named_children()]
    is_integer = placement == INTEGER
    for name in names:
        path = f"backbone.{name}"
        if name.startswith("fpn_lateral"):
            yield QuantPoint(path, Side.WEIGHT)
        elif name.startswith("fpn_output"):
            yield from _input_and_weight(path)
        if is_integer and name.startswith("fpn_"):
            yield QuantPoint(path, Side.OUTPUT, INTEGER_OUTPUT_BITS)
    for call in range(sum(name.startswith("fpn_lateral") for name in names) - 1 if is_integer else 0):
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
            if placement == INTEGER and name not in _BOX_PREDICTORS:
                yield QuantPoint(path, Side.OUTPUT, INTEGER_OUTPUT_BITS)
        elif part == "roi_heads.mask_head" and _reads_res5(model, name):
            yield QuantPoint(path, Side.WEIGHT)
        elif part in ("roi_heads.box_head", "roi_heads.mask_head"):
            yield from _input_and_weight(path)


def _input_and_weight(path: str, bits: int | None = None) -> tuple[QuantPoint, QuantPoint]:
    return QuantPoint(path, Side.INPUT, bits), QuantPoint(path, Side.WEIGHT, bits)


def _reads_res5(model: nn.Module, name: str) -> bool:
    """Whether a layer of the mask head reads quantized output of ``res5``: the first layer, without an extra norm."""
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
    """A layer without a point would stay float, and the results would not be those of scope ``all``."""
    weights = {point.path for point in points if point.is_weight}
    unknown = [path for path, layer in model.named_modules() if isinstance(layer, LAYER_TYPES) and path not in weights]
    if unknown:
        raise UserError(
            f"{unknown[0]} has no quantization point ({len(unknown)} such layer(s)): supported are Faster and Mask "
            "R-CNN, C4 and FPN; use --scope backbone"
        )
