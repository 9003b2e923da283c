"""Predicting class and box of each region (Fast R-CNN, Girshick, ICCV 2015): layers, losses, inference.

In the shapes below: R regions, K classes; class K is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import ShapeSpec, batched_nms, cat, cross_entropy, nonzero_tuple
from ...structures import Boxes, Instances
from ...utils.events import get_event_storage
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss

__all__ = ["FastRCNNOutputLayers", "fast_rcnn_inference"]

Predictions = tuple[Tensor, Tensor]


def fast_rcnn_inference(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """The detections of each image, by descending score, and the indices of their regions.

    Boxes [R, K * 4] (or [R, 4], the same for all classes), probabilities [R, K + 1]; a negative ``topk_per_image``
    keeps all.
    """
    results = [
        fast_rcnn_inference_single_image(*each, score_thresh, nms_thresh, topk_per_image)
        for each in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in results], [regions for _, regions in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    if not finite.all():
        boxes, scores = boxes[finite], scores[finite]
    by_class = boxes.shape[1] // 4
    clipped = Boxes(boxes.reshape(-1, 4))
    clipped.clip(image_shape)
    boxes = clipped.tensor.view(-1, by_class, 4)
    scores = scores[:, :-1]  # without background
    is_likely = scores > score_thresh
    regions, classes = is_likely.nonzero().unbind(1)
    boxes = boxes[regions, 0] if by_class == 1 else boxes[is_likely]
    scores = scores[is_likely]
    kept = batched_nms(boxes, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        kept = kept[:topk_per_image]
    instances = Instances(image_shape, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])
    return instances, regions[kept]


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    regions = gt_classes.numel()
    if regions == 0:
        return
    predicted = pred_logits.argmax(dim=1)
    background = pred_logits.shape[1] - 1
    is_object = (gt_classes >= 0) & (gt_classes < background)
    objects = is_object.sum().item()
    is_right = predicted == gt_classes
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", is_right.sum().item() / regions)
    if objects > 0:
        missed = is_object & (predicted == background)
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", (is_right & is_object).sum().item() / objects)
        storage.put_scalar(f"{prefix}/false_negative", missed.sum().item() / objects)


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers on a region's features: ``cls_score`` (K + 1) and ``bbox_pred`` (K * 4, or 4 for all classes).

    The losses are called ``loss_cls`` and ``loss_box_reg``; ``loss_weight`` is a number for both or a dict.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
    ) -> None:
        super().__init__()
        shape = ShapeSpec(channels=input_shape) if isinstance(input_shape, int) else input_shape
        assert shape.channels is not None
        features = shape.channels * (shape.width or 1) * (shape.height or 1)
        self.num_classes = num_classes
        self.cls_score = nn.Linear(features, num_classes + 1)
        box_dim = len(box2box_transform.weights)
        self.bbox_pred = nn.Linear(features, box_dim if cls_agnostic_bbox_reg else num_classes * box_dim)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if isinstance(loss_weight, float):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        box_head, roi_heads = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=box_head.BBOX_REG_WEIGHTS),
            "num_classes": roi_heads.NUM_CLASSES,
            "cls_agnostic_bbox_reg": box_head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": box_head.SMOOTH_L1_BETA,
            "test_score_thresh": roi_heads.SCORE_THRESH_TEST,
            "test_nms_thresh": roi_heads.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": box_head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": box_head.BBOX_REG_LOSS_WEIGHT},
        }

    def forward(self, x: Tensor) -> Predictions:
        """Map region features [R, ...] to logits [R, K + 1] and deltas [R, K * 4 or 4]."""
        x = x.flatten(start_dim=1) if x.dim() > 2 else x
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: Predictions, proposals: Sequence[Instances]) -> dict[str, Tensor]:
        """The losses. Proposals have ``proposal_boxes``, ``gt_classes`` and, with ground truth, ``gt_boxes``."""
        scores, deltas = predictions
        if proposals:
            gt_classes = cat([each.gt_classes for each in proposals])
            boxes = cat([each.proposal_boxes.tensor for each in proposals])
            assert not boxes.requires_grad, "proposals must not require gradients"
            # Without ground truth all proposals are background, and these boxes are not used.
            truth = [each.gt_boxes if each.has("gt_boxes") else each.proposal_boxes for each in proposals]
            gt_boxes = cat([each.tensor for each in truth])
        else:
            gt_classes = torch.empty(0, device=deltas.device)
            boxes = gt_boxes = torch.empty(0, 4, device=deltas.device)
        _log_classification_stats(scores, gt_classes)
        losses = {
            "loss_cls": cross_entropy(scores, gt_classes, reduction="mean"),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Summed over the foreground and divided by all R regions, which gives each object the same weight."""
        box_dim = proposal_boxes.shape[1]
        (objects,) = nonzero_tuple((gt_classes >= 0) & (gt_classes < self.num_classes))
        if pred_deltas.shape[1] == box_dim:
            deltas = pred_deltas[objects]
        else:
            deltas = pred_deltas.view(-1, self.num_classes, box_dim)[objects, gt_classes[objects]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[objects]],
            self.box2box_transform,
            [deltas[None]],
            [gt_boxes[objects]],
            ...,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1.0)

    def inference(
        self, predictions: Predictions, proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """The detections of each image and the indices of their regions."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [each.image_size for each in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """For each image the boxes [R, 4] predicted for the ground truth classes (for background: for any class)."""
        if not proposals:
            return ()
        boxes = cat(self.predict_boxes(predictions, proposals))
        if boxes.shape[1] > 4:
            classes = cat([each.gt_classes for each in proposals]).clamp(0, boxes.shape[1] // 4 - 1)
            boxes = boxes.view(len(boxes), -1, 4)[torch.arange(len(boxes), device=boxes.device), classes]
        return boxes.split([len(each) for each in proposals])

    def predict_boxes(self, predictions: Predictions, proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """The boxes [R, K * 4 or 4] of each image."""
        if not proposals:
            return ()
        boxes = cat([each.proposal_boxes.tensor for each in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], boxes).split([len(each) for each in proposals])

    def predict_probs(self, predictions: Predictions, proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """The probabilities [R, K + 1] of each image."""
        return F.softmax(predictions[0], dim=-1).split([len(each) for each in proposals])
