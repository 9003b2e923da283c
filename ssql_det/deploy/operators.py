"""Non-maximum suppression of many sets of boxes at once: torch's operator ``ssql_det::nms_rows`` and its form in ONNX.

torch's own NMS takes one set of boxes, so a detector would need a loop over its classes. ONNX's ``NonMaxSuppression``
takes a batch of sets, with one limit of the score and one of the number, which is what a detector needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms


@torch.library.custom_op("ssql_det::nms_rows", mutates_args=())
def nms_rows(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    """Non-maximum suppression in each row: from boxes [B, N, 4] and scores [B, N] to indices [M, 2] (row, box).

    Only boxes with a score above ``score_threshold`` take part; of a row at most ``limit`` remain, the best ones.

    >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [6.0, 6.0, 9.0, 9.0]]])
    >>> nms_rows(boxes, torch.tensor([[0.5, 0.9, 0.3]]), 0.5, 0.1, 10)
    tensor([[0, 1],
            [0, 2]])
    """
    found = []
    for row, (row_boxes, row_scores) in enumerate(zip(boxes, scores, strict=True)):
        (candidates,) = (row_scores > score_threshold).nonzero(as_tuple=True)
        kept = candidates[nms(row_boxes[candidates], row_scores[candidates], iou_threshold)[:limit]]
        found.append(torch.stack([torch.full_like(kept, row), kept], dim=1))
    return torch.cat(found)


@nms_rows.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    found = torch.library.get_ctx().new_dynamic_size(min=0)
    return boxes.new_empty((found, 2), dtype=torch.int64)


@torch.library.custom_op("ssql_det::dequantize", mutates_args=())
def dequantize(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """A weight, or a bias, of integers with a scale for each channel of an axis."""
    return integers.to(scale.dtype) * scale.reshape(-1, *[1] * (integers.ndim - 1 - axis))


@dequantize.register_fake
def _(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty_like(integers, dtype=scale.dtype)


@torch.library.custom_op("ssql_det::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: float, zero_point: int, greatest: int) -> Tensor:
    """Round an activation to integers from 0 to ``greatest``, of which ``zero_point`` stands for 0."""
    scale_tensor = torch.tensor(scale)
    return (torch.clamp(torch.round(x / scale_tensor) + zero_point, 0, greatest) - zero_point) * scale_tensor


@quantize_dequantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, greatest: int) -> Tensor:
    return torch.empty_like(x)


def make_translations() -> dict[Any, Any]:
    """What ``torch.onnx.export`` needs to translate the operators of this file."""
    import onnx
    import onnxscript

    op: Any = onnxscript.opset18

    def translate_nms_rows(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, limit: int) -> Any:
        # ONNX has [batch, class, box]: each row here is a batch with one class.
        selected = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )
        return op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)

    def translate_dequantize(integers: Any, scale: Any, axis: int) -> Any:
        return op.DequantizeLinear(integers, scale, axis=axis)

    def translate_quantize_dequantize(x: Any, scale: float, zero_point: int, greatest: int) -> Any:
        def make_constant(value: float, dtype: type) -> Any:
            return op.Constant(value=onnx.numpy_helper.from_array(np.array(value, dtype)))

        scale_value, zero_value = make_constant(scale, np.float32), make_constant(zero_point, np.uint8)
        quantized = op.QuantizeLinear(x, scale_value, zero_value)
        if greatest < 255:  # behind the rounding, as a clipped float would not be fused with the layer in front
            quantized = op.Clip(quantized, make_constant(0, np.uint8), make_constant(greatest, np.uint8))
        return op.DequantizeLinear(quantized, scale_value, zero_value)

    return {
        torch.ops.ssql_det.nms_rows.default: translate_nms_rows,
        torch.ops.ssql_det.dequantize.default: translate_dequantize,
        torch.ops.ssql_det.quantize_dequantize.default: translate_quantize_dequantize,
    }
