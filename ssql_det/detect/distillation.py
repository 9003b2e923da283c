"""The difference between a quantized detector and the float one, on the same images and regions, without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.detect.replay import RecordedBatch, run_with_recorded_proposals

_MIN_WEIGHT = 1e-6  # of a sum that divides


@dataclass(frozen=True)
class DetectorOutputs:
    """What the predictors of a detector return for a batch, before any decoding.

    objectness [A], anchor_deltas [A, 4]: of all anchors of all levels and images; class_logits [R, K + 1] and
    box_deltas [R, 4 K or 4]: of all regions; mask_logits [D, M, M]: of the class of each detection, ``None`` without
    masks.
    """

    objectness: Tensor
    anchor_deltas: Tensor
    class_logits: Tensor
    box_deltas: Tensor
    mask_logits: Tensor | None


class DistillationLoss:
    """The distillation loss on some batches. Its targets are the outputs of the detector, which must be float, at the
    construction."""

    def __init__(self, model: nn.Module, batches: Sequence[RecordedBatch]) -> None:
        self._batches = batches
        with torch.no_grad():
            self._targets = [compute_outputs(model.eval(), batch) for batch in batches]

    def __call__(self, model: nn.Module, index: int) -> Tensor:
        """The loss of the detector, as it is at the call, on the batch of an index."""
        return distillation_loss(compute_outputs(model, self._batches[index]), self._targets[index])


def compute_outputs(model: nn.Module, batch: RecordedBatch) -> DetectorOutputs:
    """Run the detector as it is at the call, with the recorded regions."""
    detector: Any = model
    modules = {"rpn": detector.proposal_generator.rpn_head, "boxes": detector.roi_heads.box_predictor}
    mask_head = getattr(detector.roi_heads, "mask_head", None)
    if mask_head is not None:
        modules["masks"] = mask_head.predictor
    outputs: dict[str, Any] = {}

    def make_hook(name: str) -> Any:
        return lambda module, args, output: outputs.__setitem__(name, output)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(make_hook(name)).remove)
        run_with_recorded_proposals(model, batch)
    logits, deltas = outputs["rpn"]
    return DetectorOutputs(
        objectness=torch.cat([each.permute(0, 2, 3, 1).flatten() for each in logits]),
        anchor_deltas=torch.cat([_split_boxes(each.permute(0, 2, 3, 1)) for each in deltas]),
        class_logits=outputs["boxes"][0],
        box_deltas=outputs["boxes"][1],
        mask_logits=_select_classes(outputs["masks"], batch) if "masks" in outputs else None,
    )


def distillation_loss(outputs: DetectorOutputs, target: DetectorOutputs) -> Tensor:
    """The sum of five terms, each with the float outputs as its target:

    for objectness, classes and masks the Kullback-Leibler divergence, averaged over anchors, regions and pixels; for
    the boxes of anchors and of regions smooth L1, weighted by the float detector's probability of an object.
    """
    return sum(_compute_terms(outputs, target), start=outputs.objectness.new_zeros(()))


def _compute_terms(outputs: DetectorOutputs, target: DetectorOutputs) -> Iterator[Tensor]:
    yield _binary_divergence(outputs.objectness, target.objectness)
    yield _compute_box_loss(outputs.anchor_deltas, target.anchor_deltas, target.objectness.sigmoid())
    log_probabilities, target_log = outputs.class_logits.log_softmax(1), target.class_logits.log_softmax(1)
    yield F.kl_div(log_probabilities, target_log, reduction="batchmean", log_target=True)
    foreground = target_log.exp()[:, :-1]  # the last class is the background
    num_boxes = target.box_deltas.shape[1] // 4
    weights = foreground if num_boxes == foreground.shape[1] else foreground.sum(1, keepdim=True)
    yield _compute_box_loss(_split_boxes(outputs.box_deltas), _split_boxes(target.box_deltas), weights.flatten())
    if outputs.mask_logits is not None and target.mask_logits is not None and len(target.mask_logits):
        yield _binary_divergence(outputs.mask_logits, target.mask_logits)


def _select_classes(mask_logits: Tensor, batch: RecordedBatch) -> Tensor:
    """The masks [D, M, M] of the detected classes; class-agnostic masks are shared."""
    classes = torch.cat([each.pred_classes for each in batch.detections]).clamp(max=mask_logits.shape[1] - 1)
    return mask_logits[torch.arange(len(mask_logits), device=mask_logits.device), classes]


def _split_boxes(deltas: Tensor) -> Tensor:
    return deltas.reshape(-1, 4)


def _binary_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of Bernoulli distributions, averaged over all elements."""
    probabilities = target.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(target, probabilities)
    return F.binary_cross_entropy_with_logits(logits, probabilities) - entropy


def _compute_box_loss(deltas: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    losses = F.smooth_l1_loss(deltas, target, reduction="none").sum(1)
    return (losses * weights).sum() / weights.sum().clamp(min=_MIN_WEIGHT)
