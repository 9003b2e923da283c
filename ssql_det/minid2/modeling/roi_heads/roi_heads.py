"""The RoI heads of C4 and FPN detectors.

``Res5ROIHeads`` (C4) applies the backbone's last stage to every region; ``StandardROIHeads`` (FPN) has a pooler and a
head for each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import ShapeSpec
from ...structures import Boxes, ImageList, Instances
from ...utils.registry import Registry
from ..backbone.resnet import BottleneckBlock, ResNet
from ..poolers import ROIPooler
from .base import Features, Results, ROIHeads, select_foreground_proposals
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import build_mask_head

__all__ = ["ROI_HEADS_REGISTRY", "ROIHeads", "Res5ROIHeads", "StandardROIHeads", "build_roi_heads"]

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The heads that ``MODEL.ROI_HEADS.NAME`` names, for features of these shapes."""
    heads: nn.Module = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)
    return heads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """The heads of a C4 detector: box and mask heads share ``res5``, whose blocks are bottlenecks for every depth."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        res5: nn.Module | Sequence[nn.Module],
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = res5 if isinstance(res5, nn.Module) else nn.Sequential(*res5)
        self.box_predictor: Any = box_predictor
        self.mask_on = mask_head is not None
        if mask_head is not None:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:  # type: ignore[override]
        assert len(cfg.MODEL.ROI_HEADS.IN_FEATURES) == 1
        arguments = super().from_config(cfg)
        arguments["in_features"] = cfg.MODEL.ROI_HEADS.IN_FEATURES
        arguments["pooler"] = _build_pooler(cfg.MODEL.ROI_BOX_HEAD, arguments["in_features"], input_shape)
        arguments["res5"], channels = cls._build_res5_block(cfg)
        predicted_from = ShapeSpec(channels=channels, height=1, width=1)
        arguments["box_predictor"] = FastRCNNOutputLayers(cfg, predicted_from)
        if cfg.MODEL.MASK_ON:
            side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            arguments["mask_head"] = build_mask_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
        return arguments

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        node = cfg.MODEL.RESNETS
        out_channels = node.RES2_OUT_CHANNELS * 8
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=out_channels // 2,
            bottleneck_channels=node.NUM_GROUPS * node.WIDTH_PER_GROUP * 8,
            out_channels=out_channels,
            num_groups=node.NUM_GROUPS,
            norm=node.NORM,
            stride_in_1x1=node.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), out_channels

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Results:
        if self.training:
            assert targets
            proposals = self.label_and_sample_proposals(proposals, targets)
        regions = self._shared_roi_transform(
            [features[name] for name in self.in_features], [each.proposal_boxes for each in proposals]
        )
        predictions = self.box_predictor(regions.mean(dim=[2, 3]))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            objects, masks = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(regions[torch.cat(masks)], objects))
        return [], losses

    def forward_with_given_boxes(self, features: Features, instances: list[Instances]) -> list[Instances]:
        """Add the other predictions, such as masks, to instances with ``pred_boxes`` and ``pred_classes``."""
        assert not self.training
        assert instances[0].has("pred_boxes")
        assert instances[0].has("pred_classes")
        if not self.mask_on:
            return instances
        maps = [features[name] for name in self.in_features]
        masked: list[Instances] = self.mask_head(
            self._shared_roi_transform(maps, [each.pred_boxes for each in instances]), instances
        )
        return masked

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        transformed: Tensor = self.res5(self.pooler(features, boxes))
        return transformed


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """Separate heads for boxes and masks; masks are predicted only for detected boxes.

    Without a ``mask_pooler`` the mask head gets the feature maps themselves. ``train_on_pred_boxes`` trains masks on
    predicted boxes instead of proposals.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor: Any = box_predictor
        self.mask_on = mask_in_features is not None
        if mask_in_features is not None:
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head: Any = mask_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:  # type: ignore[override]
        return {
            **super().from_config(cfg),
            "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES,
            **cls._init_box_head(cfg, input_shape),
            **cls._init_mask_head(cfg, input_shape),
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_features, side = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = {input_shape[name].channels for name in in_features}
        assert len(channels) == 1, f"the features that share a box head have different channels: {channels}"
        head: Any = build_box_head(cfg, ShapeSpec(channels=channels.pop(), height=side, width=side))
        return {
            "box_in_features": in_features,
            "box_pooler": _build_pooler(cfg.MODEL.ROI_BOX_HEAD, in_features, input_shape),
            "box_head": head,
            "box_predictor": FastRCNNOutputLayers(cfg, head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        in_features, node = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_MASK_HEAD
        side = node.POOLER_RESOLUTION
        shape: Any = ShapeSpec(channels=input_shape[in_features[0]].channels, height=side, width=side)
        if not node.POOLER_TYPE:
            shape = {name: input_shape[name] for name in in_features}
        return {
            "mask_in_features": in_features,
            "mask_pooler": _build_pooler(node, in_features, input_shape) if node.POOLER_TYPE else None,
            "mask_head": build_mask_head(cfg, shape),
        }

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Results:
        if not self.training:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        assert targets, "there is no ground truth to train on"
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals)
        losses.update(self._forward_mask(features, proposals))
        return proposals, losses

    def forward_with_given_boxes(self, features: Features, instances: list[Instances]) -> list[Instances]:
        """Add the other predictions, such as masks, to instances with ``pred_boxes`` and ``pred_classes``."""
        assert not self.training
        assert instances[0].has("pred_boxes")
        assert instances[0].has("pred_classes")
        masked: list[Instances] = self._forward_mask(features, instances)
        return masked

    def _forward_box(self, features: Features, proposals: list[Instances]) -> Any:
        """In training the losses (``train_on_pred_boxes`` replaces proposals by predicted boxes), else detections."""
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [each.proposal_boxes for each in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return detections
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for each, predicted in zip(proposals, boxes, strict=True):
                each.proposal_boxes = Boxes(predicted)
        return losses

    def _forward_mask(self, features: Features, instances: list[Instances]) -> Any:
        """In training the losses on foreground proposals, else the instances with masks."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        if self.mask_pooler is None:
            return self.mask_head({name: features[name] for name in self.mask_in_features}, instances)
        boxes = [each.proposal_boxes if self.training else each.pred_boxes for each in instances]
        maps = [features[name] for name in self.mask_in_features]
        return self.mask_head(self.mask_pooler(maps, boxes), instances)


def _build_pooler(node: CfgNode, in_features: Sequence[str], input_shape: dict[str, ShapeSpec]) -> ROIPooler:
    """The pooler that a head's config describes."""
    strides: list[Any] = [input_shape[name].stride for name in in_features]
    return ROIPooler(
        output_size=node.POOLER_RESOLUTION,
        scales=[1.0 / stride for stride in strides],
        sampling_ratio=node.POOLER_SAMPLING_RATIO,
        pooler_type=node.POOLER_TYPE,
    )
