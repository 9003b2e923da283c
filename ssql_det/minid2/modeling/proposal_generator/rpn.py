"""Region proposal network (Ren et al., NIPS 2015).

In the shapes below: N images, levels of H x W locations with A anchors each, R anchors over all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import Conv2d, ShapeSpec, cat
from ...structures import Boxes, ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ...utils.registry import Registry
from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")


def build_rpn_head(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> nn.Module:
    """The head that ``MODEL.RPN.HEAD_NAME`` names."""
    head: nn.Module = RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)
    return head


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convs of ``conv_dims`` channels (-1 keeps them), then two 1x1 convs for logits and deltas."""

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)
    ) -> None:
        super().__init__()
        convs = []
        channels = in_channels
        for wanted in conv_dims:
            out_channels = channels if wanted == -1 else wanted
            if out_channels <= 0:
                raise ValueError(f"MODEL.RPN.CONV_DIMS has {wanted}: use a positive number, or -1 to keep the channels")
            convs.append(Conv2d(channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU()))
            channels = out_channels
        if len(convs) == 1:
            self.conv: nn.Module = convs[0]
        else:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in (*convs, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        channels = {each.channels for each in input_shape}
        assert len(channels) == 1, f"levels that share a head have different channels: {channels}"
        anchors = build_anchor_generator(cfg, input_shape)
        counts = set(anchors.num_anchors)  # type: ignore[arg-type]
        assert len(counts) == 1, f"levels that share a head have different numbers of anchors: {counts}"
        return {
            "in_channels": channels.pop(),
            "num_anchors": counts.pop(),
            "box_dim": anchors.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits [N, A, H, W] and deltas [N, A * box_dim, H, W] for each level."""
        logits, deltas = [], []
        for each in features:
            hidden = self.conv(each)
            logits.append(self.objectness_logits(hidden))
            deltas.append(self.anchor_deltas(hidden))
        return logits, deltas


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Computes proposals; in training also losses, on a sample of the anchors.

    ``pre_nms_topk`` and ``post_nms_topk`` are (in training, in testing). The losses are called ``loss_rpn_cls`` and
    ``loss_rpn_loc``; ``loss_weight`` is a number for both or a dict.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if isinstance(loss_weight, float):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.RPN
        shapes = [input_shape[name] for name in node.IN_FEATURES]
        return {
            "in_features": node.IN_FEATURES,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "nms_thresh": node.NMS_THRESH,
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "loss_weight": {
                "loss_rpn_cls": node.LOSS_WEIGHT,
                "loss_rpn_loc": node.BBOX_REG_LOSS_WEIGHT * node.LOSS_WEIGHT,
            },
            "anchor_boundary_thresh": node.BOUNDARY_THRESH,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "box_reg_loss_type": node.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": node.SMOOTH_L1_BETA,
            "pre_nms_topk": (node.PRE_NMS_TOPK_TRAIN, node.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (node.POST_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TEST),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True),
            "head": build_rpn_head(cfg, shapes),
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: Sequence[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """The proposals of each image (``proposal_boxes``, ``objectness_logits``), and in training the losses."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        raw_logits, raw_deltas = self.rpn_head(maps)
        logits = [each.permute(0, 2, 3, 1).flatten(1) for each in raw_logits]
        deltas = [self._by_anchor(each) for each in raw_deltas]
        losses = {}
        if self.training:
            assert gt_instances is not None, "there is no ground truth to train on"
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def _by_anchor(self, deltas: Tensor) -> Tensor:
        """Reshape [N, A * B, H, W] to [N, H * W * A, B]."""
        images, _, height, width = deltas.shape
        split = deltas.view(images, -1, int(self.anchor_generator.box_dim), height, width)  # type: ignore[arg-type]
        return split.permute(0, 3, 4, 1, 2).flatten(1, -2)

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: Sequence[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image the labels [R] (1 object, 0 background, -1 not sampled) and matched boxes [R, 4]."""
        every = Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for instances in gt_instances:
            boxes = instances.gt_boxes
            matches, labels = self.anchor_matcher(pairwise_iou(boxes, every))
            if self.anchor_boundary_thresh >= 0:
                labels[~every.inside_box(instances.image_size, self.anchor_boundary_thresh)] = -1
            all_labels.append(self._subsample_labels(labels))
            all_boxes.append(boxes[matches].tensor if len(boxes) else torch.zeros_like(every.tensor))
        return all_labels, all_boxes

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """Set the labels that are not sampled to -1, in place."""
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses summed over the sample and divided by the size of a full sample."""
        labels = torch.stack(gt_labels)
        images = len(labels)
        positive, sampled = labels == 1, labels >= 0
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", positive.sum().item() / images)
        storage.put_scalar("rpn/num_neg_anchors", (labels == 0).sum().item() / images)
        location = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        logits = cat(pred_objectness_logits, dim=1)[sampled]
        objectness = F.binary_cross_entropy_with_logits(logits, labels[sampled].float(), reduction="sum")
        losses = {"loss_rpn_cls": objectness, "loss_rpn_loc": location}
        full_sample = self.batch_size_per_image * images
        return {name: loss / full_sample * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The proposals of each image, without gradients."""
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """The boxes [N, H * W * A, 4] of each level."""
        proposals = []
        for boxes, deltas in zip(anchors, pred_anchor_deltas, strict=True):
            repeated = boxes.tensor.expand(len(deltas), -1, -1).flatten(0, 1)
            proposals.append(self.box2box_transform.apply_deltas(deltas.flatten(0, 1), repeated).view_as(deltas))
        return proposals
