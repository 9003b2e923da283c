"""Non-maximum suppression, each class or level for itself."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices that stay, by falling score. Boxes in float32: half precision has not the range."""
    assert boxes.shape[-1] == 4
    kept: Tensor = box_ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
    return kept
