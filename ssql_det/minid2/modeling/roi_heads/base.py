"""The base class of RoI heads: labelling and sampling proposals for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...structures import ImageList, Instances, pairwise_iou
from ...utils.events import get_event_storage
from ..matcher import Matcher
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels

Features = dict[str, Tensor]
Results = tuple[list[Instances], dict[str, Tensor]]


def select_foreground_proposals(proposals: Sequence[Instances], bg_label: int) -> tuple[list[Instances], list[Tensor]]:
    """The foreground proposals of each image (neither ``bg_label`` nor -1), and the masks that select them."""
    masks = [(each.gt_classes != -1) & (each.gt_classes != bg_label) for each in proposals]
    return [each[mask.nonzero()[:, 0]] for each, mask in zip(proposals, masks, strict=True)], masks


class ROIHeads(nn.Module):
    """Labels proposals by the ground truth that they match, and samples them for training."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": node.NUM_CLASSES,
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=False),
            "proposal_append_gt": node.PROPOSAL_APPEND_GT,
        }

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Results:
        """In inference the detections of each image and no losses; in training the sampled proposals and the losses."""
        raise NotImplementedError

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """A sample of the proposals of each image, with ``gt_classes`` (K for background).

        In an image with ground truth, each proposal also gets the other ``gt_`` fields of its match.
        """
        if self.proposal_append_gt:  # so that there are positives even while proposals are poor
            proposals = add_ground_truth_to_proposals(targets, proposals)
        samples = []
        for each, truth in zip(proposals, targets, strict=True):
            matches, labels = self.proposal_matcher(pairwise_iou(truth.gt_boxes, each.proposal_boxes))
            chosen, classes = self._sample_proposals(matches, labels, truth.gt_classes)
            sample = each[chosen]
            sample.gt_classes = classes
            if len(truth) > 0:
                for name, value in truth.get_fields().items():
                    if name.startswith("gt_") and not sample.has(name):
                        sample.set(name, value[matches[chosen]])
            samples.append(sample)
        backgrounds = [(each.gt_classes == self.num_classes).sum().item() for each in samples]
        objects = [len(each) - background for each, background in zip(samples, backgrounds, strict=True)]
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", np.mean(objects))
        storage.put_scalar("roi_head/num_bg_samples", np.mean(backgrounds))
        return samples

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The indices and classes of the sampled proposals."""
        if gt_classes.numel() > 0:
            classes = gt_classes[matched_idxs]
            classes[matched_labels == 0] = self.num_classes
            classes[matched_labels == -1] = -1
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        drawn = subsample_labels(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
        chosen = torch.cat(drawn)
        return chosen, classes[chosen]
