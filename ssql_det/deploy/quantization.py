"""The quantization that a network is exported with: that of a file, or a new one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode
from ssql_det.detect.evaluation_data import Batch, select_calibration_images
from ssql_det.detect.quantized_evaluation import (
    NormBatches,
    QuantizationSettings,
    build_calibrated_quantization,
    correct_detector_norms,
)
from ssql_det.detect.saved_quantization import check_quantization_file, load_with_settings
from ssql_det.pretrain.quantize_backbone import quantize_backbone
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.bits import format_bits
from ssql_det.quant.integer_form import check_integer_scheme


def quantize_detector(
    cfg: CfgNode,
    model: nn.Module,
    bits: Bits,
    settings: QuantizationSettings,
    file: Path | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[Quantization, str]:
    """Quantize a detector for a bit-width, with its norms corrected; return the quantization and its scope.

    It is calibrated on training images as the ``settings`` say. With a ``file``, only their bit-widths matter; what is
    ``given`` beside the file, such as a scheme, must agree with it.
    """
    images: Sequence[Batch]
    if file is None:
        settings.scheme.check_learns_nothing([bits])
        images = select_calibration_images(cfg, settings.calibration)
        quantization = build_calibrated_quantization(cfg, model, settings, images)
    else:
        quantization, found = load_with_settings(file, model, **(given or {}))
        check_integer_scheme(quantization.scheme, [bits], settings.overrides, file)
        settings = replace(found, overrides=settings.overrides)
        missing = check_quantization_file(file, cfg, model, [bits], settings)
        images = [] if missing is None else missing  # to compute norms on
    correct_detector_norms(quantization, bits, settings.overrides, NormBatches(model, images))
    return quantization, settings.scope


def load_backbone_quantization(
    file: Path, backbone: nn.Module, bits: Bits, overrides: Mapping[str, Bits], scheme: Scheme | None = None
) -> Quantization:
    """The quantization of a pretrained backbone in a file, which must serve a bit-width."""
    quantization = Quantization.load(file, backbone, scheme)
    check_integer_scheme(quantization.scheme, [bits], overrides, file)
    missing = quantization.list_missing_repairs(bits, overrides)
    if missing:
        label = format_bits(bits, overrides)
        raise UserError(f"{file} has no {missing[0]} at {label}; run `ssql-det quantize` for these bits")
    return quantization


def quantize_pretrained(
    checkpoint: str,
    backbone: nn.Module,
    data: str,
    bits: Bits,
    settings: QuantizationSettings,
    recipe: str = "",
    size: int | None = None,
) -> Quantization:
    """Quantize the ``backbone`` of a checkpoint for a bit-width, with the repairs of the scheme, on images of
    ``data``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.safetensors"
        quantize_backbone(
            checkpoint,
            data,
            [bits],
            settings.scheme,
            settings.calibration,
            path,
            augmentation_name=recipe,
            image_size=size,
            device_name="cpu",
            overrides=settings.overrides,
        )
        return Quantization.load(path, backbone)
