"""Calibrate a detector, evaluate it at a bit-width, and make the result row."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn

from ssql_det.convert import Metadata
from ssql_det.core.distributed import broadcast_from_main, is_main, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Row
from ssql_det.d2 import CfgNode, engine_name
from ssql_det.detect.datasets import shorten_dataset_name
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import (
    Batch,
    CachedLoader,
    merge_batches,
    select_calibration_images,
    take_rank_share,
)
from ssql_det.detect.points import detector_points
from ssql_det.quant import Bits, Calibration, CostProfile, Quantization, Scheme, evaluate_at_bit_width, profile_cost
from ssql_det.quant.quantization_file import check_same_points

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizationSettings:
    """How a detector is quantized for an evaluation, as its result rows record it."""

    scope: str  # the part of the detector that is quantized, one of points.SCOPES
    calibration: Calibration = field(default_factory=Calibration)  # number and seed of the calibration images
    scheme: Scheme = field(default_factory=Scheme)
    overrides: Mapping[str, Bits] = field(default_factory=dict)  # bit-widths by pattern of module paths; unused at FP


@dataclass(frozen=True)
class EvaluationContext:
    """What the evaluations of a detector at all bit-widths share."""

    cfg: CfgNode
    settings: QuantizationSettings
    dataset: str  # name of the test set
    loader: CachedLoader  # of its images
    quantization: Quantization
    calibration_batches: Sequence[Batch]  # batches of one image each
    cost_profile: CostProfile


def prepare_evaluation(
    cfg: CfgNode,
    model: nn.Module,
    settings: QuantizationSettings,
    dataset: str,
    loader: CachedLoader,
    calibration_batches: Sequence[Batch] | None = None,
    quantization_file: Path | None = None,
) -> EvaluationContext:
    """Calibrate the detector and save the quantization to ``quantization_file``, or load it if the file exists.

    ``calibration_batches`` have one image each; by default they are selected as the settings say. Without a
    ``quantization_file`` nothing is saved.
    """
    points = detector_points(model, settings.scope, settings.scheme.placement)
    batches = calibration_batches or select_calibration_images(cfg, settings.calibration)
    if quantization_file is not None and broadcast_from_main(quantization_file.exists):
        quantization = Quantization.load(quantization_file, model, settings.scheme)
        check_same_points(points, quantization.points, quantization_file)
        expected = describe_calibration(cfg, settings, batches)
        if quantization.calibration not in (None, expected):
            raise UserError(
                f"{quantization_file} was calibrated on {quantization.calibration}, not on {expected}; "
                "delete it to calibrate again"
            )
        _logger.info("using the calibration in %s", quantization_file)
    else:
        quantization = build_calibrated_quantization(cfg, model, settings, batches)
        if quantization_file is not None and is_main():
            quantization.save(quantization_file)
    model.eval()
    cost_profile = broadcast_from_main(lambda: profile_cost(model, points, next(iter(loader))))
    return EvaluationContext(cfg, settings, dataset, loader, quantization, batches, cost_profile)


def build_calibrated_quantization(
    cfg: CfgNode, model: nn.Module, settings: QuantizationSettings, batches: Sequence[Batch]
) -> Quantization:
    """Calibrate a new quantization of the detector on ``batches`` of one image each; the detector is not changed.

    The quantization records the number of images and their data sets, those in ``DATASETS.TRAIN``.
    """
    points = detector_points(model, settings.scope, settings.scheme.placement)
    quantization = Quantization(model, points, settings.scheme)
    quantization.calibration = describe_calibration(cfg, settings, batches)
    calibrate_detector(quantization, batches)
    return quantization


def describe_calibration(cfg: CfgNode, settings: QuantizationSettings, batches: Sequence[Batch]) -> Calibration:
    data_name = "+".join(map(shorten_dataset_name, cfg.DATASETS.TRAIN))
    return replace(settings.calibration, images=len(batches), data=data_name)


def calibrate_detector(quantization: Quantization, batches: Sequence[Batch]) -> None:
    """Calibrate on batches of one image each; under a process group each rank takes its share of the batches."""
    if len(batches) < world_size():
        raise UserError(
            f"calibration needs at least one image per process ({world_size()}), got {len(batches)}; "
            "calibrate with more images"
        )
    quantization.calibrate(take_rank_share(batches), forward=run_detector)


def run_detector(model: nn.Module, batch: Batch) -> None:
    """Run a forward pass and drop the detections: the ``forward`` argument of calibrations."""
    model(batch)


def evaluate_quantized(
    context: EvaluationContext, bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> tuple[dict[str, float], float]:
    """Metrics and costs at a bit-width, and the duration in seconds. Afterwards the detector is float again.

    ``overrides`` are bit-widths by pattern of module paths; None means no overrides, even if the settings have some.
    ``MB`` are megabytes of parameters, ``GFLOPs`` the multiply-adds of the first image and ``GBOPs`` its
    bit-operations, both in billions.
    """
    quantization, is_fast = context.quantization, context.cfg.SSQL_DET.FAST_EVALUATION
    _logger.info("evaluating at %s on %s", bits, context.dataset)
    start = time.perf_counter()
    evaluate_model = partial(evaluate, quantization.model, context.loader, context.dataset, is_fast)
    norm_batches = merge_batches(context.calibration_batches)  # only read if the scheme re-estimates norm statistics
    metrics = evaluate_at_bit_width(quantization, bits, evaluate_model, overrides, norm_batches, run_detector)
    cost = context.cost_profile.at(bits, overrides)
    metrics |= {"MB": cost.bytes / 1e6, "GFLOPs": cost.macs / 1e9, "GBOPs": cost.bit_ops / 1e9}
    return metrics, round(time.perf_counter() - start, 2)


@dataclass(frozen=True)
class DetectorProvenance:
    """Where an evaluated detector comes from, as its result rows record it."""

    checkpoint_label: str  # a file name, or the iteration of a training
    metadata: Metadata  # of the checkpoint, with the pretraining method
    network: str  # the name of the backbone's architecture
    sha256: str = ""  # of the checkpoint file; "" if there is none, as during a training


def make_row(
    context: EvaluationContext,
    config_label: str,  # the config file and the keys changed on the command line, from make_config_label
    bits: Bits,
    result: tuple[Mapping[str, float], float],  # metrics and costs; seconds
    provenance: DetectorProvenance,
) -> Row:
    """Make a row of :func:`evaluate_quantized`'s result; method and seed are the config's or else the checkpoint's.

    The row records the overrides of the settings, also at FP, where a sweep does not apply them.
    """
    cfg, settings, (metrics, seconds) = context.cfg, context.settings, result
    metadata = provenance.metadata
    return Row(
        method=cfg.SSQL_DET.METHOD or metadata.method or "",
        checkpoint=provenance.checkpoint_label,
        checkpoint_hash=provenance.sha256,
        config=config_label,
        dataset=shorten_dataset_name(context.dataset),
        bits=str(bits),
        scope=settings.scope,
        metrics=metrics,
        seed=cfg.SEED if cfg.SEED >= 0 or metadata.seed is None else metadata.seed,
        engine=engine_name(),
        seconds=seconds,
        scheme=str(settings.scheme),
        calibration=context.quantization.calibration or settings.calibration,
        network=provenance.network,
        overrides={pattern: str(override) for pattern, override in settings.overrides.items()},
        placement=settings.scheme.placement,  # also a part of the scheme's text, for those who select rows by it
    )
