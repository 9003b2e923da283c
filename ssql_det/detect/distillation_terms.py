"""The terms of the difference between a quantized detector's outputs and the float one's, without labels."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from ssql_det.detect.detector_outputs import DetectorOutputs

_LEAST = 1e-6  # of a sum that divides


def compute_objectness_loss(outputs: DetectorOutputs, target: DetectorOutputs) -> Tensor:
    return _binary_divergence(outputs.objectness, target.objectness)


def compute_anchor_loss(outputs: DetectorOutputs, target: DetectorOutputs) -> Tensor:
    return _compute_box_loss(outputs.anchor_deltas, target.anchor_deltas, target.objectness.sigmoid())


def compute_class_loss(outputs: DetectorOutputs, target: DetectorOutputs) -> Tensor:
    log_probabilities, target_log = outputs.class_logits.log_softmax(1), target.class_logits.log_softmax(1)
    return F.kl_div(log_probabilities, target_log, reduction="batchmean", log_target=True)


def compute_region_loss(outputs: DetectorOutputs, target: DetectorOutputs) -> Tensor:
    foreground = target.class_logits.log_softmax(1).exp()[:, :-1]  # the last class is the background
    num_boxes = target.box_deltas.shape[1] // 4
    weights = foreground if num_boxes == foreground.shape[1] else foreground.sum(1, keepdim=True)
    deltas, target_deltas = (each.box_deltas.reshape(-1, 4) for each in (outputs, target))
    return _compute_box_loss(deltas, target_deltas, weights.flatten())


def compute_mask_loss(outputs: DetectorOutputs, target: DetectorOutputs) -> Tensor:
    if outputs.mask_logits is None or target.mask_logits is None or not len(target.mask_logits):
        return outputs.objectness.new_zeros(())
    return _binary_divergence(outputs.mask_logits, target.mask_logits)


def compute_feature_loss(outputs: DetectorOutputs, target: DetectorOutputs) -> Tensor:
    """The squared error of each level relative to the squares of the target, averaged over the levels."""
    pairs = zip(outputs.features, target.features, strict=True)
    return torch.stack([F.mse_loss(x, y) / y.square().mean().clamp(min=_LEAST) for x, y in pairs]).mean()


TERMS: dict[str, Callable[[DetectorOutputs, DetectorOutputs], Tensor]] = {
    "objectness": compute_objectness_loss,
    "anchors": compute_anchor_loss,
    "classes": compute_class_loss,
    "boxes": compute_region_loss,
    "masks": compute_mask_loss,
    "features": compute_feature_loss,
}
PREDICTOR_TERMS = tuple(name for name in TERMS if name != "features")


def distillation_loss(
    outputs: DetectorOutputs, target: DetectorOutputs, terms: Collection[str] = PREDICTOR_TERMS
) -> Tensor:
    """The sum of the terms, each with the float outputs as its target:

    for ``objectness``, ``classes`` and ``masks`` the Kullback-Leibler divergence, averaged over anchors, regions and
    pixels; for the boxes of ``anchors`` and of regions (``boxes``) smooth L1, weighted by the float detector's
    probability of an object; for ``features`` the relative squared error.
    """
    return sum((TERMS[name](outputs, target) for name in terms), start=outputs.objectness.new_zeros(()))


def _binary_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of Bernoulli distributions, averaged over all elements."""
    probabilities = target.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(target, probabilities)
    return F.binary_cross_entropy_with_logits(logits, probabilities) - entropy


def _compute_box_loss(deltas: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    losses = F.smooth_l1_loss(deltas, target, reduction="none").sum(1)
    return (losses * weights).sum() / weights.sum().clamp(min=_LEAST)
