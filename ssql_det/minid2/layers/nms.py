"""Non-maximum suppression within each class or level."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices that are kept, by descending score. Computed in float32, since float16 has too small a range."""
    assert boxes.shape[-1] == 4
    kept: Tensor = box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
    return kept
