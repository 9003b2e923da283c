"""Replay the float detector's proposals and detections in passes of the quantized detector.

A detector's heads see the regions that its RPN proposes, and its mask head the boxes that its box head detects. A few
bits move both, so layers behind them see other regions than in float, and their inputs and outputs cannot be compared.
Whatever compares a quantized detector with the float one (norm statistics, reconstruction, distillation) therefore
records the float regions once, and lets every later pass see them::

    recorded = record_proposals(model, batches)                               # the detector is float
    with quantization.at(Bits(4, 4)):
        run_with_recorded_proposals(model, recorded[0])                       # observed by hooks
    quantization.calibrate(recorded, forward=run_with_recorded_proposals)     # also a ``quant.forward.Forward``
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.d2 import GeneralizedRCNN, Instances
from ssql_det.detect.evaluation_data import Batch
from ssql_det.quant.forward import evaluating
from ssql_det.quant.hooks import overriding_attributes


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """A batch and the regions that the float detector found in its images."""

    inputs: Batch  # the engine's
    proposals: list[Instances]  # of each image, as the proposal generator returned them
    detections: list[Instances]  # of each image, as the box head returned them: without masks, in the input's size


def record_proposals(model: nn.Module, batches: Iterable[Batch]) -> list[RecordedBatch]:
    """Run the detector once on each batch and record its proposals and detections, on the detector's device.

    The detector runs as it is at the call, so call this outside of a quantization's contexts.
    """
    _check_has_proposals(model)
    with evaluating(model), torch.no_grad():
        return [_record_batch(model, batch) for batch in track(batches, "recording proposals")]


def run_with_recorded_proposals(model: nn.Module, batch: RecordedBatch) -> None:
    """Run a detector in evaluation mode on a batch, with its recorded regions: the ``forward`` of calibrations.

    All layers run, those of the RPN and of the box head too, but what these find is replaced by the record, which the
    pass does not change. No gradient passes through boxes, as in the engine. Masks are not resized to the image.
    """
    _check_has_proposals(model)
    detector: Any = model

    def replace_proposals(module: nn.Module, args: Any, output: Any) -> Any:
        _, losses = output
        return _copy_instances(batch.proposals), losses

    def replace_detections(predictions: Any, proposals: Any) -> Any:
        return _copy_instances(batch.detections), None  # the heads of Faster and Mask R-CNN ignore the regions' indices

    handle = detector.proposal_generator.register_forward_hook(replace_proposals)
    try:
        with overriding_attributes(detector.roi_heads.box_predictor, inference=replace_detections):
            detector.inference(batch.inputs, do_postprocess=False)
    finally:
        handle.remove()


def _record_batch(model: nn.Module, batch: Batch) -> RecordedBatch:
    detector: Any = model
    predictor = detector.roi_heads.box_predictor
    find_detections = predictor.inference
    proposals: list[Instances] = []
    detections: list[Instances] = []

    def record_generated(module: nn.Module, args: Any, output: Any) -> None:
        proposals.extend(_copy_instances(output[0]))

    def record_detections(predictions: Any, proposals: Any) -> Any:
        found = find_detections(predictions, proposals)
        detections.extend(_copy_instances(found[0]))  # now: the mask head adds masks to these objects
        return found

    handle = detector.proposal_generator.register_forward_hook(record_generated)
    try:
        with overriding_attributes(predictor, inference=record_detections):
            detector.inference(batch, do_postprocess=False)
    finally:
        handle.remove()
    if not len(batch) == len(proposals) == len(detections):
        raise _make_unsupported_error(model)
    return RecordedBatch(batch, proposals, detections)


def _copy_instances(instances: Sequence[Instances]) -> list[Instances]:
    """Copies that share no tensor: heads add fields to the objects, and postprocessing scales boxes in place."""
    return [copy.deepcopy(each) for each in instances]


def _check_has_proposals(model: nn.Module) -> None:
    detector: Any = model
    if (
        not isinstance(model, GeneralizedRCNN)
        or not isinstance(detector.proposal_generator, nn.Module)
        or not hasattr(getattr(detector.roi_heads, "box_predictor", None), "inference")
    ):
        raise _make_unsupported_error(model)


def _make_unsupported_error(model: nn.Module) -> UserError:
    heads = type(getattr(model, "roi_heads", model)).__name__
    return UserError(
        f"the proposals and detections of {heads} cannot be recorded: supported are Faster and Mask R-CNN, C4 and FPN; "
        "use a scheme with norms as trained and without reconstruction"
    )
