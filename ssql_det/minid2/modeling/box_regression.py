"""Box regression (R-CNN): deltas that shift and scale boxes, and their loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss

from ..layers import cat
from ..structures import Boxes

__all__ = ["Box2BoxTransform"]

_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)  # the largest growth: from a small anchor to a whole image


class Box2BoxTransform:
    """Deltas (dx, dy, dw, dh): the centre moves by dx widths and dy heights, the sides grow by exp(dw) and exp(dh).

    ``weights`` multiply the deltas; Fast R-CNN chose them to give unit variance.

    >>> transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    >>> proposals, targets = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[1.0, 1.0, 9.0, 5.0]])
    >>> transform.apply_deltas(transform.get_deltas(proposals, targets), proposals)
    tensor([[1., 1., 9., 5.]])
    """

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The deltas [N, 4] that transform N source boxes into N target boxes."""
        centres, sides = _centres_and_sides(src_boxes)
        target_centres, target_sides = _centres_and_sides(target_boxes)
        assert (sides[:, 0] > 0).all(), "a box to be moved has no width"
        x, y = (target_centres - centres).unbind(1)
        width, height = sides.unbind(1)
        wider, higher = torch.log(target_sides / sides).unbind(1)
        weights = self.weights
        return torch.stack(
            (weights[0] * x / width, weights[1] * y / height, weights[2] * wider, weights[3] * higher), dim=1
        )

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas [N, k * 4] to N boxes: [N, k * 4], in float32."""
        deltas = deltas.float()
        centres, sides = (each[:, None] for each in _centres_and_sides(boxes.to(deltas.dtype)))
        by_kind = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4).unbind(-1)
        scaled = torch.stack([each / weight for weight, each in zip(self.weights, by_kind, strict=True)], dim=-1)
        new_centres = scaled[..., :2] * sides + centres
        half = 0.5 * (torch.exp(scaled[..., 2:].clamp(max=self.scale_clamp)) * sides)
        return torch.cat((new_centres - half, new_centres + half), dim=-1).reshape(deltas.shape)


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * sides, sides


_IOU_LOSSES = {"giou": giou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def _dense_box_regression_loss(
    anchors: Sequence[Boxes | Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    fg_mask: Any,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """The loss summed over the foreground anchors of N images, with R anchors in all levels together.

    ``anchors`` [H * W * A, 4] and ``pred_anchor_deltas`` [N, H * W * A, 4] per level, ``gt_boxes`` [R, 4] per image,
    ``fg_mask`` [N, R]. "smooth_l1" compares deltas, the IoU losses compare boxes.
    """
    boxes = cat([each.tensor if isinstance(each, Boxes) else each for each in anchors])
    deltas = cat(pred_anchor_deltas, dim=1)
    if box_reg_loss_type == "smooth_l1":
        targets = torch.stack([box2box_transform.get_deltas(boxes, each) for each in gt_boxes])
        loss: Tensor = smooth_l1_loss(deltas[fg_mask], targets[fg_mask], beta=smooth_l1_beta, reduction="sum")
        return loss
    if box_reg_loss_type not in _IOU_LOSSES:
        raise ValueError(
            f"unknown box regression loss '{box_reg_loss_type}': choose one of smooth_l1, {', '.join(_IOU_LOSSES)}"
        )
    predicted = torch.stack([box2box_transform.apply_deltas(each, boxes) for each in deltas])
    loss = _IOU_LOSSES[box_reg_loss_type](predicted[fg_mask], torch.stack(list(gt_boxes))[fg_mask], reduction="sum")
    return loss
