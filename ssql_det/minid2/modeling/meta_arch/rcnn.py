"""The R-CNN meta architecture: backbone, proposal generator, RoI heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...structures import ImageList, Instances
from ..backbone import Backbone, build_backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY

__all__ = ["GeneralizedRCNN"]

Inputs = list[dict[str, Any]]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(nn.Module):
    """In training a dict of losses; else ``{"instances": Instances}`` for each image, in the requested size."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads: Any = roi_heads
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        assert self.pixel_mean.shape == self.pixel_std.shape, f"{pixel_mean} and {pixel_std} differ in length"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "input_format": cfg.INPUT.FORMAT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Inputs) -> Any:
        """Inputs have ``image`` [C, H, W]; in training ``instances``; else the output's ``height`` and ``width``."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = None
        if "instances" in batched_inputs[0]:
            targets = [each["instances"].to(self.device) for each in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self.proposal_generator(images, features, targets)
        _, detector_losses = self.roi_heads(images, features, proposals, targets)
        return {**detector_losses, **proposal_losses}

    def inference(
        self,
        batched_inputs: Inputs,
        detected_instances: Sequence[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """With ``detected_instances`` (boxes and classes) only their other fields are predicted.

        Without postprocessing the Instances are in the size of the network's input.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            known = [each.to(self.device) for each in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, known)
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def preprocess_image(self, batched_inputs: Inputs) -> ImageList:
        """Normalize, pad and batch."""
        images = [(each["image"].to(self.device) - self.pixel_mean) / self.pixel_std for each in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    @staticmethod
    def _postprocess(
        instances: Sequence[Instances], batched_inputs: Inputs, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        results = []
        for each, asked, (height, width) in zip(instances, batched_inputs, image_sizes, strict=True):
            resized = detector_postprocess(each, asked.get("height", height), asked.get("width", width))
            results.append({"instances": resized})
        return results
