"""Quantize a detector for some bit-widths, with the repairs of a scheme (corrected norms and biases, learned rounding,
tuned parameters): one file that evaluations can use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from ssql_det.d2 import CfgNode
from ssql_det.detect.blocks import detector_blocks
from ssql_det.detect.distillation import DistillationLoss
from ssql_det.detect.evaluation_data import RoleImages, merge_batches, select_role_images
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import QuantizationSettings, calibrate_detector, describe_calibration
from ssql_det.detect.replay import RecordedBatch, record_proposals, run_with_recorded_proposals
from ssql_det.ptq import RepairData, RepairResult, check_role_images, quantize_network
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.scheme import ROUNDING, TUNING

_TUNING_BATCH_SIZE = 4  # images of a step of tuning


def quantize_detector(
    cfg: CfgNode,
    model: nn.Module,
    bit_widths: Sequence[Bits],
    settings: QuantizationSettings,
    path: Path,
    images: RoleImages | None = None,
) -> tuple[Quantization, dict[Bits, RepairResult | None]]:
    """Calibrate and repair the detector, and save its quantization to ``path`` after each step.

    Return it with the results of each bit-width's repairs, see :func:`ssql_det.ptq.quantize_network`. If the file
    exists, with the same settings, what it lacks is added: an interrupted run continues, and ends with the same bytes.
    ``images`` are those of the settings, if they were selected already.
    """
    check_role_images(settings.scheme, settings.calibration)
    images = images or select_role_images(cfg, settings.calibration)
    return quantize_network(
        model,
        detector_points(model, settings.scope, settings.scheme.placement),
        settings.scheme,
        describe_calibration(cfg, settings, images.calibration),
        bit_widths,
        path,
        calibrate=lambda quantization: calibrate_detector(quantization, images.calibration),
        make_data=lambda: make_repair_data(model, images, settings.scope, settings.scheme.repairs),
        overrides=settings.overrides,
    )


def make_repair_data(
    model: nn.Module, images: RoleImages, scope: str, repairs: Sequence[str] = (ROUNDING, TUNING)
) -> RepairData:
    """What the repairs of a detector need; all batches have the float detector's proposals.

    Reconstruction and tuning use the same images, one and several at a time. They are only read if one of the
    ``repairs`` learns from them.
    """
    learns = ROUNDING in repairs or TUNING in repairs
    tuning = record_proposals(model, list(merge_batches(images.reconstruction, _TUNING_BATCH_SIZE)) if learns else [])
    return RepairData(
        calibration=record_proposals(model, list(merge_batches(images.calibration))),
        reconstruction=[image for batch in tuning for image in split_batch(batch)],
        tuning=tuning,
        forward=run_with_recorded_proposals,
        blocks=detector_blocks(model, scope),
        make_loss=partial(DistillationLoss, model),
    )


def split_batch(batch: RecordedBatch) -> list[RecordedBatch]:
    """A batch for each image."""
    parts = zip(batch.inputs, batch.proposals, batch.detections, strict=True)
    return [RecordedBatch([image], [proposals], [detections]) for image, proposals, detections in parts]
