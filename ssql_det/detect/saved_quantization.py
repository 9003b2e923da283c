"""Evaluate with a quantization file: the settings that it stands for, and whether it fits a detector and bit-widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode
from ssql_det.detect.evaluation_data import CalibrationImages, select_calibration_images
from ssql_det.detect.points import SCOPES, detector_points
from ssql_det.detect.quantized_evaluation import QuantizationSettings, describe_calibration
from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme
from ssql_det.quant.quantization_file import check_given_calibration, check_same_points
from ssql_det.quant.scheme import NORM_CORRECTION


def load_with_settings(
    path: Path,
    model: nn.Module,
    scope: str | None = None,
    scheme: Scheme | None = None,
    images: int | None = None,
    seed: int | None = None,
) -> tuple[Quantization, QuantizationSettings]:
    """The quantization in a file, and the settings that it stands for. An argument that is not ``None`` must agree with
    the file."""
    quantization = Quantization.load(path, model, scheme)
    placement = quantization.scheme.placement
    scope = scope or _find_scope(model, quantization.points, placement)
    check_same_points(detector_points(model, scope, placement), quantization.points, path)
    calibration = check_given_calibration(path, quantization.calibration, images, seed)
    return quantization, QuantizationSettings(scope, calibration, quantization.scheme)


def check_quantization_file(
    path: Path, cfg: CfgNode, model: nn.Module, bit_widths: Sequence[Bits], settings: QuantizationSettings
) -> CalibrationImages | None:
    """Raise an error unless the file serves an evaluation at all these bit-widths with these settings.

    Return the calibration images if statistics of norms must still be computed at a bit-width, else ``None``.
    """
    quantization = Quantization.load(path, model, settings.scheme)
    check_same_points(detector_points(model, settings.scope, settings.scheme.placement), quantization.points, path)
    needs_norms = False
    for bits in bit_widths:
        overrides = None if bits == Bits.FP else settings.overrides
        quantization.check_repairs(bits, overrides)
        needs_norms |= NORM_CORRECTION in quantization.list_missing_repairs(bits, overrides)
    return _select_images(path, cfg, settings, quantization) if needs_norms else None


def load_with_images(
    path: Path, cfg: CfgNode, model: nn.Module, settings: QuantizationSettings
) -> tuple[Quantization, CalibrationImages]:
    """The quantization in a file, and the images that it was calibrated on. How many images are kept for selection may
    differ from the file's."""
    quantization = Quantization.load(path, model, settings.scheme)
    return quantization, _select_images(path, cfg, settings, quantization)


def _select_images(
    path: Path, cfg: CfgNode, settings: QuantizationSettings, quantization: Quantization
) -> CalibrationImages:
    images = select_calibration_images(cfg, settings.calibration)
    expected, saved = describe_calibration(cfg, settings, images), quantization.calibration
    if saved is None or replace(saved, selection_images=expected.selection_images) != expected:
        raise UserError(
            f"{path} was calibrated on {quantization.calibration}, but DATASETS.TRAIN gives {expected}; set it to "
            "the data set of the file"
        )
    return images


def _find_scope(model: nn.Module, points: Sequence[QuantPoint], placement: str) -> str:
    for scope in SCOPES:
        has_scope = scope != "backbone+neck" or hasattr(model.backbone, "bottom_up")
        if has_scope and {*detector_points(model, scope, placement)} == {*points}:
            return scope
    return SCOPES[-1]  # the check of points that follows names one that differs
