"""Selecting proposals from the predicted boxes, and adding ground truth to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...layers import batched_nms, cat
from ...structures import Boxes, Instances

_CERTAIN = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))  # the logit of ground truth boxes: a probability of almost 1


def find_top_rpn_proposals(
    proposals: Sequence[Tensor],
    pred_objectness_logits: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Select the proposals of each image: the best boxes of each level, clipped, not empty, after NMS the best of all.

    Boxes [N, H * W * A, 4] and logits [N, H * W * A] per level. A box or score that is not finite is dropped; in
    training it is an error.
    """
    scores, boxes, levels = [], [], []
    for level, (level_boxes, logits) in enumerate(zip(proposals, pred_objectness_logits, strict=True)):
        best, chosen = logits.topk(min(logits.shape[1], pre_nms_topk), dim=1)
        scores.append(best)
        boxes.append(level_boxes.gather(1, chosen[..., None].expand(-1, -1, 4)))
        levels.append(torch.full(chosen.shape[1:], level, device=chosen.device))
    all_levels = cat(levels)
    by_image = zip(
        cat(boxes, dim=1), cat(scores, dim=1), image_sizes, strict=False
    )  # of more images than sizes the first
    return [
        _top_of_image(image_boxes, image_scores, all_levels, size, nms_thresh, post_nms_topk, min_box_size, training)
        for image_boxes, image_scores, size in by_image
    ]


def _top_of_image(
    tensor: Tensor,
    scores: Tensor,
    levels: Tensor,
    image_size: tuple[int, int],
    nms_thresh: float,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> Instances:
    finite = torch.isfinite(tensor).all(dim=1) & torch.isfinite(scores)
    if not finite.all():
        if training:
            raise FloatingPointError("training has diverged: proposals are infinite or NaN; try a lower SOLVER.BASE_LR")
        tensor, scores, levels = tensor[finite], scores[finite], levels[finite]
    boxes = Boxes(tensor)
    boxes.clip(image_size)
    large = boxes.nonempty(threshold=min_box_size)
    if not large.all():
        boxes, scores, levels = boxes[large], scores[large], levels[large]
    kept = batched_nms(boxes.tensor, scores, levels, nms_thresh)[:post_nms_topk]
    return Instances(image_size, proposal_boxes=boxes[kept], objectness_logits=scores[kept])


def add_ground_truth_to_proposals(gt: Sequence[Instances | Boxes], proposals: Sequence[Instances]) -> list[Instances]:
    """Append ground truth boxes, with a very high objectness, to the proposals of each image."""
    assert gt is not None
    if len(proposals) != len(gt):
        raise ValueError(f"ground truth of {len(gt)} images, proposals of {len(proposals)}")
    return [add_ground_truth_to_proposals_single_image(truth, each) for truth, each in zip(gt, proposals, strict=True)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """Concatenate; of the ground truth only the fields that the proposals have are kept."""
    if isinstance(gt, Boxes):
        gt = Instances(proposals.image_size, gt_boxes=gt)
    logits = torch.full((len(gt),), _CERTAIN, device=proposals.objectness_logits.device)
    fields = {**gt.get_fields(), "proposal_boxes": gt.gt_boxes, "objectness_logits": logits}
    for name in proposals.get_fields():
        assert name in fields, f"proposals have '{name}', but ground truth does not"
    return Instances.cat([proposals, Instances(proposals.image_size, **fields)])
