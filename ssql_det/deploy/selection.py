"""What lies between a detector's networks, for one image: boxes, selecting proposals and detections, pooling.

The results are those of the engine, but everything is a tensor and there are no loops over classes or detections:

- each level of the RPN is padded to at least the number of boxes that enter NMS, so that this number is a constant;
- regions are put in the order of their pyramid levels, so that each is pooled once, at its level, and the pooled
  features need no sorting;
- one NMS serves all levels, another one all classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssql_det.deploy.operators import nms_rows

Features = Mapping[str, Tensor]
_LOWEST = torch.finfo(torch.float32).min
_NO_LIMIT = 2**31 - 1  # of the number of boxes


def decode_boxes(transform: Any, deltas: Tensor, boxes: Tensor) -> Tensor:
    """The engine's ``Box2BoxTransform.apply_deltas``, for deltas and boxes [..., 4].

    >>> from types import SimpleNamespace
    >>> transform = SimpleNamespace(weights=(10.0, 10.0, 5.0, 5.0), scale_clamp=4.0)  # as the engine's has them
    >>> decode_boxes(transform, torch.zeros(1, 4), torch.tensor([[2.0, 2.0, 6.0, 8.0]]))
    tensor([[2., 2., 6., 8.]])
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + 0.5 * sides
    scaled = deltas / torch.tensor(transform.weights, device=deltas.device)
    new_centres = scaled[..., :2] * sides + centres
    half = 0.5 * (torch.exp(scaled[..., 2:].clamp(max=transform.scale_clamp)) * sides)
    return torch.cat((new_centres - half, new_centres + half), dim=-1)


def _clip_boxes(boxes: Tensor, limits: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def select_proposals(rpn: Any, features: Features, limits: Tensor) -> Tensor:
    """The proposals of the RPN, [P, 4], by descending score."""
    maps = [features[name] for name in rpn.in_features]
    logits, deltas = rpn.rpn_head(maps)
    anchors = rpn.anchor_generator
    levels = zip(logits, deltas, anchors.cell_anchors, anchors.strides, strict=True)
    per_level = [_select_in_level(rpn, *level) for level in levels]
    boxes, scores = (torch.stack(each) for each in zip(*per_level, strict=True))  # [L, K, 4], [L, K]
    is_finite = torch.isfinite(boxes).all(dim=-1) & torch.isfinite(scores)
    boxes = _clip_boxes(boxes, limits)
    is_large = (boxes[..., 2:] - boxes[..., :2] > rpn.min_box_size).all(dim=-1)
    scores = torch.where(is_finite & is_large, scores, -math.inf)
    limit = rpn.post_nms_topk[False]
    found = nms_rows(boxes, scores, rpn.nms_thresh, _LOWEST, limit)
    chosen = found[:, 0] * scores.shape[1] + found[:, 1]
    best = scores.reshape(-1)[chosen].sort(descending=True).indices[:limit]
    return boxes.reshape(-1, 4)[chosen[best]]


def _select_in_level(rpn: Any, logits: Tensor, deltas: Tensor, cells: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The best boxes [K, 4] and scores [K] of a level, before NMS; those that the level does not have score -inf.

    Logits [1, A, H, W] and deltas [1, A * 4, H, W] of A anchors ``cells`` [A, 4] at each position.
    """
    height, width = logits.shape[2:]
    scores = logits[0].permute(1, 2, 0).reshape(-1)
    deltas = deltas[0].reshape(len(cells), 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    limit = rpn.pre_nms_topk[False]
    best, chosen = F.pad(scores, (0, limit), value=-math.inf).topk(limit)
    chosen = chosen.clamp(max=deltas.shape[0] - 1)
    offset = rpn.anchor_generator.offset
    y, x = (
        (torch.arange(side, dtype=torch.float32, device=cells.device) + offset) * stride for side in (height, width)
    )
    grid = torch.stack((*torch.meshgrid(x, y, indexing="xy"),) * 2, dim=-1)  # [H, W, 4]
    anchors = (grid.reshape(-1, 1, 4) + cells).reshape(-1, 4)
    return decode_boxes(rpn.box2box_transform, deltas[chosen], anchors[chosen]), best


def select_detections(
    predictor: Any, regions: Tensor, logits: Tensor, deltas: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, 4], scores [N] and classes [N] of the detections among P regions, by descending score."""
    num_classes = predictor.num_classes
    is_agnostic = deltas.shape[1] == 4
    boxes = decode_boxes(
        predictor.box2box_transform, deltas.reshape(-1, 1 if is_agnostic else num_classes, 4), regions[:, None]
    )
    has_sigmoid = getattr(predictor, "use_sigmoid_ce", False)  # MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE of Detectron2
    probabilities = logits.sigmoid() if has_sigmoid else F.softmax(logits, dim=-1)
    is_finite = torch.isfinite(boxes).all(dim=2).all(dim=1) & torch.isfinite(probabilities).all(dim=1)
    boxes = _clip_boxes(boxes, limits).permute(1, 0, 2).expand(num_classes, -1, -1)  # [classes, P, 4]
    scores = torch.where(is_finite, probabilities[:, :-1].t(), -math.inf)  # without the background: [classes, P]
    limit = predictor.test_topk_per_image if predictor.test_topk_per_image >= 0 else _NO_LIMIT
    found = nms_rows(boxes, scores, predictor.test_nms_thresh, predictor.test_score_thresh, limit)
    best, order = scores[found[:, 0], found[:, 1]].sort(descending=True)
    classes, chosen = found[order[:limit]].unbind(1)
    return boxes[classes, chosen], best[:limit], classes


def pool_regions(pooler: Any, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Pool each of N boxes once, at its pyramid level: their order by levels [N], and in that order their features.

    The maps are [1, C, H, W] of the pooler's levels, the features [N, C, *output_size].
    """
    if len(maps) == 1:
        pooled = _pool_level(pooler.level_poolers[0], maps[0], boxes)
        return torch.arange(boxes.shape[0], device=boxes.device), _assume_not_empty(pooled)
    sides = boxes[:, 2:] - boxes[:, :2]
    sizes = torch.sqrt(sides[:, 0] * sides[:, 1])
    levels = torch.floor(pooler.canonical_level + torch.log2(sizes / pooler.canonical_box_size + 1e-8))
    levels = levels.clamp(pooler.min_level, pooler.max_level).to(torch.int64) - pooler.min_level
    chosen = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
    levels_pooled = [
        _pool_level(level_pooler, features, boxes[indices])
        for level_pooler, features, indices in zip(pooler.level_poolers, maps, chosen, strict=True)
    ]
    return torch.cat(chosen), _assume_not_empty(torch.cat(levels_pooled))


def _pool_level(level_pooler: Any, features: Tensor, boxes: Tensor) -> Tensor:
    pooled: Tensor = level_pooler(features, F.pad(boxes, (1, 0)))  # 0 in front: the index of the image
    return pooled


def _assume_not_empty(batch: Tensor) -> Tensor:
    """While a graph is traced: torch's layers ask whether a batch is empty, which has no answer then.

    The layers of ONNX do not ask, so the traced graph takes empty batches too.
    """
    if torch.compiler.is_compiling():
        torch._check(batch.shape[0] > 0)
    return batch
