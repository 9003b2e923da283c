"""Quantize a detector for some bit-widths, with the repairs of a scheme: one file that evaluations can use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode
from ssql_det.detect.blocks import detector_blocks
from ssql_det.detect.distillation import compute_outputs, distillation_loss
from ssql_det.detect.evaluation_data import RoleImages, merge_batches, select_role_images
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import (
    QuantizationSettings,
    build_calibrated_quantization,
    describe_calibration,
)
from ssql_det.detect.replay import RecordedBatch, record_proposals, run_with_recorded_proposals
from ssql_det.ptq import RepairData, make_repairs
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.quantization_file import check_same_points
from ssql_det.quant.scheme import ROUNDING, TUNING

_TUNING_BATCH_SIZE = 4  # images of a step of tuning
_logger = logging.getLogger(__name__)


def quantize_detector(
    cfg: CfgNode, model: nn.Module, bit_widths: Sequence[Bits], settings: QuantizationSettings, path: Path
) -> Quantization:
    """Calibrate and repair the detector, and save its quantization to ``path`` after each step.

    If the file exists, with the same settings, what it lacks is added: an interrupted run goes on, to the same bits.
    """
    settings.scheme.check_bits([*bit_widths, *settings.overrides.values()])
    images = select_role_images(cfg, settings.calibration)
    if settings.scheme.repairs and not len(images.reconstruction):
        _check_needs_no_reconstruction(settings)
    quantization = _load_or_calibrate(cfg, model, settings, images, path)
    missing = [bits for bits in bit_widths if quantization.list_missing_repairs(bits, settings.overrides)]
    if missing:
        data = make_repair_data(model, images, settings.scope)
        for bits in missing:
            seed = settings.calibration.seed
            make_repairs(quantization, bits, data, settings.overrides, seed, lambda: quantization.save(path))
            _logger.info("repaired at %s: %s", bits, ", ".join(settings.scheme.repairs))
    quantization.save(path)
    return quantization


def make_repair_data(model: nn.Module, images: RoleImages, scope: str) -> RepairData:
    """Record the float detector's proposals, and its outputs as the targets of tuning."""
    tuning = record_proposals(model, list(merge_batches(images.reconstruction, _TUNING_BATCH_SIZE)))
    with torch.no_grad():
        targets = [compute_outputs(model.eval(), batch) for batch in tuning]

    def compute_loss(network: nn.Module, index: int) -> Tensor:
        return distillation_loss(compute_outputs(network, tuning[index]), targets[index])

    return RepairData(
        calibration=record_proposals(model, list(merge_batches(images.calibration))),
        reconstruction=[image for batch in tuning for image in split_batch(batch)],
        tuning=tuning,
        forward=run_with_recorded_proposals,
        blocks=detector_blocks(model, scope),
        compute_loss=compute_loss,
    )


def split_batch(batch: RecordedBatch) -> list[RecordedBatch]:
    """A batch for each image."""
    parts = zip(batch.inputs, batch.proposals, batch.detections, strict=True)
    return [RecordedBatch([image], [proposals], [detections]) for image, proposals, detections in parts]


def _load_or_calibrate(
    cfg: CfgNode, model: nn.Module, settings: QuantizationSettings, images: RoleImages, path: Path
) -> Quantization:
    if not path.exists():
        return build_calibrated_quantization(cfg, model, settings, images.calibration)
    quantization = Quantization.load(path, model, settings.scheme)
    check_same_points(detector_points(model, settings.scope, settings.scheme.placement), quantization.points, path)
    expected = describe_calibration(cfg, settings, images.calibration)
    if quantization.calibration != expected:
        raise UserError(f"{path} was calibrated on {quantization.calibration}, not on {expected}; choose another --out")
    return quantization


def _check_needs_no_reconstruction(settings: QuantizationSettings) -> None:
    needing = {ROUNDING: f"weight={settings.scheme.weight}", TUNING: f"tune={settings.scheme.tune}"}
    for name in settings.scheme.repairs:
        if name in needing:
            raise UserError(f"{needing[name]} needs images for reconstruction; give --reconstruction-images")
