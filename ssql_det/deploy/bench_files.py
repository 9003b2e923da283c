"""What ``ssql-det bench`` measures with: images, and one detector exported at several bit-widths."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ssql_det.convert import Checkpoint
from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode
from ssql_det.deploy.check_images import load_test_images
from ssql_det.deploy.export import export_detector, make_integers
from ssql_det.deploy.graph import DetectorGraph
from ssql_det.deploy.integer_check import find_coverage
from ssql_det.deploy.metadata import FLOAT_BITS, InputRule
from ssql_det.detect.evaluation_data import Batch
from ssql_det.detect.predict import load_image
from ssql_det.detect.quantized_evaluation import (
    NormBatches,
    QuantizationSettings,
    build_calibrated_quantization,
    correct_detector_norms,
)
from ssql_det.detect.saved_quantization import load_with_settings
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.tracing import trace_pass

CALIBRATION_IMAGES = 8  # enough for speed, which hardly depends on the ranges
NOISE = "noise, seed 0"
_NOISE_SIZE = (480, 640)  # before it is resized
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchImages:
    """Batches of one resized image each; the first is timed, all calibrate. ``name`` says what the first one is."""

    batches: Sequence[Batch]
    name: str

    @property
    def timed(self) -> Any:
        """uint8 [height, width, 3]."""
        return self.batches[0][0]["image"].permute(1, 2, 0).contiguous().numpy()


@dataclass(frozen=True)
class BenchIntegers:
    """A quantized detector, and the bit-widths at which it is exported."""

    quantization: Quantization
    scope: str
    bit_widths: Sequence[Bits]
    calibration: Sequence[Batch]  # the images that norms may be computed on

    @classmethod
    def calibrate(
        cls, cfg: CfgNode, model: nn.Module, scheme: Scheme, bit_widths: Sequence[Bits], images: BenchImages
    ) -> BenchIntegers:
        settings = QuantizationSettings("all", scheme=scheme)
        quantization = build_calibrated_quantization(cfg, model, settings, images.batches)
        return cls(quantization, settings.scope, bit_widths, images.batches)

    @classmethod
    def load(cls, file: Path, model: nn.Module, scheme: Scheme | None, bit_widths: Sequence[Bits]) -> BenchIntegers:
        """Of a file by `ssql-det quantize`, with its repairs; ``scheme`` must agree with it."""
        quantization, settings = load_with_settings(file, model, scheme=scheme)
        return cls(quantization, settings.scope, bit_widths, ())


def load_bench_images(cfg: CfgNode, size: tuple[int, int] | None = None, path: Path | None = None) -> BenchImages:
    """An image file, else images of ``DATASETS.TEST``, else noise; resized to (height, width), or by the config's rule.

    That there is no test image is no mistake: on a machine where a detector is to run, there often is no data set.
    """
    if path is not None:
        batches, name = [load_image(cfg, path)], path.name
    else:
        try:
            batches = load_test_images(cfg, CALIBRATION_IMAGES)
            name = Path(batches[0][0]["file_name"]).name
        except UserError as failure:
            _logger.warning("%s: %s is timed instead of a test image", failure, NOISE)
            rule = InputRule(cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
            height, width = size or rule.get_size(*_NOISE_SIZE)
            batches, name = [make_noise_batch(height, width)], NOISE
    return BenchImages([_resize(batch, size) for batch in batches], name)


def make_noise_batch(height: int, width: int) -> Batch:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return [{"image": torch.from_numpy(noise).permute(2, 0, 1).contiguous(), "height": height, "width": width}]


def _resize(batch: Batch, size: tuple[int, int] | None) -> Batch:
    (inputs,) = batch
    pixels = inputs["image"].permute(1, 2, 0).contiguous().numpy()
    if size is None or pixels.shape[:2] == size:
        return batch
    resized = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    return [{**inputs, "image": torch.from_numpy(resized.copy()).permute(2, 0, 1).contiguous()}]


def export_for_bench(
    cfg: CfgNode,
    config_label: str,
    model: nn.Module,
    checkpoint: Checkpoint,
    integers: BenchIntegers | None,
    images: BenchImages,
    folder: Path,
) -> dict[str, tuple[Path, float | None]]:
    """Export the detector in float, and at each bit-width of ``integers``; the files by bit-width, in this order, with
    the share of multiply-adds that onnxruntime computes in integers."""
    path = folder / f"detector_{Bits.FP}.onnx"
    export_detector(cfg, model, checkpoint, config_label, path)
    files: dict[str, tuple[Path, float | None]] = {FLOAT_BITS: (path, None)}
    if integers is None:
        return files
    quantization, graph = integers.quantization, DetectorGraph(model.eval())
    image = torch.from_numpy(images.timed)
    operations = trace_pass(model, quantization.points, image, lambda _, image: graph(image)).operations
    norm_batches = NormBatches(model, integers.calibration)
    for bits in track(integers.bit_widths, "exporting integers"):
        path = folder / f"detector_{bits}.onnx"
        correct_detector_norms(quantization, bits, None, norm_batches)
        form = make_integers(quantization, bits, integers.scope)
        export_detector(cfg, model, checkpoint, config_label, path, form)
        files[str(bits)] = path, find_coverage(path, operations).share
    return files
