"""Mask heads (Mask R-CNN, He et al., ICCV 2017): a small grid of logits for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import Conv2d, ConvTranspose2d, ShapeSpec, cat, get_norm
from ...structures import Instances
from ...utils.events import get_event_storage
from ...utils.registry import Registry

__all__ = ["ROI_MASK_HEAD_REGISTRY", "BaseMaskRCNNHead", "MaskRCNNConvUpsampleHead", "build_mask_head"]

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: Sequence[Instances]) -> Tensor:
    """The mean binary cross-entropy between the mask logits of the ground truth class and the mask within the proposal.

    Logits [M, classes or 1, S, S] for the M regions of all images; ``instances`` have ``proposal_boxes``,
    ``gt_classes`` and ``gt_masks``.
    """
    assert pred_mask_logits.size(2) == pred_mask_logits.size(3), "masks are predicted on squares"
    side = pred_mask_logits.size(2)
    regions = [each for each in instances if len(each) > 0]
    if not regions:
        return pred_mask_logits.sum() * 0
    masks = [each.gt_masks.crop_and_resize(each.proposal_boxes.tensor, side) for each in regions]
    targets = cat([each.to(pred_mask_logits.device) for each in masks])
    logits = _of_class(pred_mask_logits, [each.gt_classes for each in regions])
    _log_accuracy(logits > 0.0, targets if targets.dtype == torch.bool else targets > 0.5)
    return F.binary_cross_entropy_with_logits(logits, targets.to(torch.float32), reduction="mean")


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: Sequence[Instances]) -> None:
    """Set ``pred_masks`` [M, 1, S, S] of the instances: the probabilities for the predicted class."""
    logits = _of_class(pred_mask_logits, [each.pred_classes for each in pred_instances])
    counts = [len(each) for each in pred_instances]
    for probabilities, instances in zip(logits[:, None].sigmoid().split(counts), pred_instances, strict=True):
        instances.pred_masks = probabilities


def _of_class(logits: Tensor, classes: Sequence[Tensor]) -> Tensor:
    """The logits [M, S, S] of each region's class; class-agnostic logits are shared."""
    if logits.size(1) == 1:
        return logits[:, 0]
    return logits[torch.arange(len(logits), device=logits.device), cat(classes).to(torch.int64)]


def _log_accuracy(predicted: Tensor, truth: Tensor) -> None:
    wrong = predicted != truth
    positives = truth.sum().item()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - wrong.sum().item() / max(wrong.numel(), 1.0))
    storage.put_scalar("mask_rcnn/false_positive", (wrong & ~truth).sum().item() / max(truth.numel() - positives, 1.0))
    storage.put_scalar("mask_rcnn/false_negative", (wrong & truth).sum().item() / max(positives, 1.0))


class BaseMaskRCNNHead(nn.Module):
    """Loss and inference of a mask head; a subclass defines ``layers``, which maps features to logits."""

    @configurable
    def __init__(self, *, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {}

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """In training ``{"loss_mask": ...}``, else the instances with their masks."""
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):  # type: ignore[misc]
    """3x3 convs ``mask_fcn1``, ..., a deconv of stride 2, a 1x1 ``predictor``.

    ``conv_dims`` are the channels of the convs and, last, of the deconv.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        assert len(conv_dims) >= 1, "conv_dims must have at least the deconv's channels"
        assert input_shape.channels is not None
        channels = input_shape.channels
        *widths, deconv_width = conv_dims
        convs: list[nn.Module] = []
        for index, width in enumerate(widths, start=1):
            norm = get_norm(conv_norm, width)
            convs.append(Conv2d(channels, width, 3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU()))
            self.add_module(f"mask_fcn{index}", convs[-1])
            channels = width
        self.deconv = ConvTranspose2d(channels, deconv_width, kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(deconv_width, num_classes, kernel_size=1)
        for layer in (*convs, self.deconv):
            c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [node.CONV_DIM] * (node.NUM_CONV + 1),
            "conv_norm": node.NORM,
        }

    def layers(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def build_mask_head(cfg: CfgNode, input_shape: Any) -> nn.Module:
    """The head that ``MODEL.ROI_MASK_HEAD.NAME`` names."""
    head: nn.Module = ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)
    return head
