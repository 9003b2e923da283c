"""Calibrate a detector, evaluate it at a bit-width, and make the result row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ssql_det.convert import Metadata
from ssql_det.core.config import flatten_config
from ssql_det.core.distributed import broadcast_from_main, is_main, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Row
from ssql_det.d2 import CfgNode, engine_name
from ssql_det.detect.config import IGNORED_KEYS, TRAINING_EVALUATION_KEYS, TRAINING_KEYS
from ssql_det.detect.datasets import shorten_dataset_name
from ssql_det.detect.evaluation import evaluate, split_class_aps
from ssql_det.detect.evaluation_data import (
    Batch,
    CachedLoader,
    merge_batches,
    select_calibration_images,
    take_rank_share,
)
from ssql_det.detect.points import detector_points
from ssql_det.detect.replay import RecordedBatch, record_proposals, run_with_recorded_proposals
from ssql_det.quant import Bits, Calibration, CostProfile, Quantization, Scheme, profile_cost
from ssql_det.quant.evaluate import correct_missing_norms
from ssql_det.quant.quantization_file import check_same_points
from ssql_det.quant.training import QuantizerTraining

T = TypeVar("T")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizationSettings:
    """How a detector is quantized for an evaluation, as its result rows record it."""

    scope: str  # the part of the detector that is quantized, one of points.SCOPES
    calibration: Calibration = field(default_factory=Calibration)  # number and seed of the calibration images
    scheme: Scheme = field(default_factory=Scheme)
    overrides: Mapping[str, Bits] = field(default_factory=dict)  # bit-widths by pattern of module paths; unused at FP


def collect_settings(
    cfg: CfgNode, weights_sha256: str, settings: QuantizationSettings, file_sha256: str, engine: str
) -> dict[str, Any]:
    """All settings that determine what an evaluation measures, but for the data and the bit-width, as the file of a
    folder of evaluations has them. ``file_sha256`` is that of a quantization file.

    The keys are worded for error messages, which print them: config keys, options, or phrases.
    """
    ignored_keys = (*IGNORED_KEYS, *TRAINING_EVALUATION_KEYS, *TRAINING_KEYS)
    return {
        **{key: value for key, value in flatten_config(cfg).items() if key not in ignored_keys},
        "weights' sha256": weights_sha256,
        "engine": engine,
        "--scope": settings.scope,
        "--calib-images": settings.calibration.images,
        "--calib-seed": settings.calibration.seed,
        "reconstruction images": settings.calibration.reconstruction_images,
        "selection images": settings.calibration.selection_images,
        "--scheme": str(settings.scheme),  # with its placement and norms
        "--quantization": file_sha256,
    }


@dataclass(frozen=True)
class EvaluationEngine:
    """What computes the detections that are evaluated, called ``name`` in result rows.

    ``make_model`` takes a quantization, a bit-width and overrides, and returns a module with the engine's inputs and
    outputs. Without it the detector itself is evaluated, with simulated integers.
    """

    name: str
    make_model: Callable[[Quantization, Bits, Mapping[str, Bits] | None], nn.Module] | None = None

    @classmethod
    def simulated(cls) -> EvaluationEngine:
        return cls(engine_name())


class NormBatches:
    """The calibration images in batches of several, with the regions that the float detector finds in them.

    These are recorded when they are needed first, once for all bit-widths. Call ``record`` outside of a quantization's
    contexts.
    """

    def __init__(self, model: nn.Module, images: Sequence[Batch]) -> None:
        self._model, self._images = model, images
        self._recorded: list[RecordedBatch] | None = None

    def record(self) -> list[RecordedBatch]:
        if self._recorded is None:
            self._recorded = record_proposals(self._model, list(merge_batches(self._images))) if self._images else []
        return self._recorded


@dataclass(frozen=True)
class EvaluationContext:
    """What the evaluations of a detector at all bit-widths share."""

    cfg: CfgNode
    settings: QuantizationSettings
    dataset: str  # name of the test set
    loader: CachedLoader  # of its images
    quantization: Quantization
    norm_batches: NormBatches
    cost_profile: CostProfile
    engine: EvaluationEngine


def prepare_evaluation(
    cfg: CfgNode,
    model: nn.Module,
    settings: QuantizationSettings,
    dataset: str,
    loader: CachedLoader,
    calibration_batches: Sequence[Batch] | None = None,
    quantization_file: Path | None = None,
    engine: EvaluationEngine | None = None,
    trained: QuantizerTraining | None = None,
) -> EvaluationContext:
    """Calibrate the detector and save the quantization to ``quantization_file``, or load it if the file exists.

    ``calibration_batches`` have one image each; by default they are selected as the settings say. They may be empty if
    the file exists and has the norms of all bit-widths. Without a ``quantization_file`` nothing is saved. The default
    ``engine`` is :meth:`EvaluationEngine.simulated`. ``trained`` has the quantizers of a training that goes on.
    """
    points = detector_points(model, settings.scope, settings.scheme.placement)
    batches = calibration_batches
    if batches is None:
        batches = select_calibration_images(cfg, settings.calibration)
    if quantization_file is not None and broadcast_from_main(quantization_file.exists):
        quantization = Quantization.load(quantization_file, model, settings.scheme)
        check_same_points(points, quantization.points, quantization_file)
        expected = describe_calibration(cfg, settings, batches)
        if batches and quantization.calibration not in (None, expected):
            raise UserError(
                f"{quantization_file} was calibrated on {quantization.calibration}, not on {expected}; "
                "delete it to calibrate again"
            )
        _logger.info("using the calibration in %s", quantization_file)
    else:
        quantization = build_calibrated_quantization(cfg, model, settings, batches, trained)
        if quantization_file is not None and is_main():
            quantization.save(quantization_file)
    model.eval()
    cost_profile = broadcast_from_main(lambda: profile_cost(model, points, next(iter(loader))))
    norm_batches = NormBatches(model, batches)
    engine = engine or EvaluationEngine.simulated()
    return EvaluationContext(cfg, settings, dataset, loader, quantization, norm_batches, cost_profile, engine)


def build_calibrated_quantization(
    cfg: CfgNode,
    model: nn.Module,
    settings: QuantizationSettings,
    batches: Sequence[Batch],
    trained: QuantizerTraining | None = None,
) -> Quantization:
    """Calibrate a new quantization of the detector on ``batches`` of one image each; the detector is not changed.

    The quantization records the number of images and their data sets, those in ``DATASETS.TRAIN``. With ``trained``
    it has copies of these quantizers, of which those that train their ranges keep them.
    """
    if trained is None:
        points = detector_points(model, settings.scope, settings.scheme.placement)
        quantization = Quantization(model, points, settings.scheme)
    else:
        quantization = trained.copy(settings.scheme)
    quantization.calibration = describe_calibration(cfg, settings, batches)
    calibrate_detector(quantization, batches, restart=trained is None)
    return quantization


def describe_calibration(cfg: CfgNode, settings: QuantizationSettings, batches: Sequence[Batch]) -> Calibration:
    data_name = "+".join(map(shorten_dataset_name, cfg.DATASETS.TRAIN))
    return replace(settings.calibration, images=len(batches), data=data_name)


def calibrate_detector(quantization: Quantization, batches: Sequence[Batch], restart: bool = True) -> None:
    """Calibrate on batches of one image each; under a process group each rank takes its share of the batches.

    ``restart`` is that of :meth:`Quantization.calibrate`.
    """
    if len(batches) < world_size():
        raise UserError(
            f"calibration needs at least one image per process ({world_size()}), got {len(batches)}; "
            "calibrate with more images"
        )
    quantization.calibrate(take_rank_share(batches), forward=run_detector, restart=restart)


def run_detector(model: nn.Module, batch: Batch) -> None:
    """Run a forward pass and drop the detections: the ``forward`` argument of calibrations."""
    model(batch)


def evaluate_quantized(
    context: EvaluationContext, bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> tuple[dict[str, float], float]:
    """Metrics and costs at a bit-width, and the duration in seconds. Afterwards the detector is float again.

    ``overrides`` are bit-widths by pattern of module paths; None means no overrides, even if the settings have some.
    ``MB`` are megabytes of parameters, with those that only this bit-width has, ``GFLOPs`` the multiply-adds of the
    first image and ``GBOPs`` its bit-operations, both in billions.
    """
    quantization, is_fast = context.quantization, context.cfg.SSQL_DET.FAST_EVALUATION
    _logger.info("evaluating at %s on %s", bits, context.dataset)
    start = time.perf_counter()

    evaluate_model = partial(evaluate, loader=context.loader, dataset=context.dataset, is_fast=is_fast)
    if context.engine.make_model is None:
        evaluate_simulated = partial(evaluate_model, quantization.model)
        metrics = evaluate_detector_at(quantization, bits, evaluate_simulated, overrides, context.norm_batches)
    else:
        correct_detector_norms(quantization, bits, overrides, context.norm_batches)
        metrics = evaluate_model(context.engine.make_model(quantization, bits, overrides))
    cost = context.cost_profile.at(bits, overrides)
    num_bytes = cost.bytes + quantization.get_repair(bits, overrides).num_bytes
    metrics |= {"MB": num_bytes / 1e6, "GFLOPs": cost.macs / 1e9, "GBOPs": cost.bit_ops / 1e9}
    return metrics, round(time.perf_counter() - start, 2)


def evaluate_detector_at(
    quantization: Quantization,
    bits: Bits,
    evaluate: Callable[[], T],
    overrides: Mapping[str, Bits] | None,
    norm_batches: NormBatches,
) -> T:
    """:func:`ssql_det.quant.evaluate_at_bit_width`, but norms are computed on the float detector's regions."""
    correct_detector_norms(quantization, bits, overrides, norm_batches)
    with quantization.at(bits, overrides):
        return evaluate()


def correct_detector_norms(
    quantization: Quantization, bits: Bits, overrides: Mapping[str, Bits] | None, norm_batches: NormBatches
) -> None:
    """:func:`ssql_det.quant.evaluate.correct_missing_norms`, on the float detector's regions."""
    correct_missing_norms(quantization, bits, overrides, norm_batches.record, run_with_recorded_proposals)


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
    cfg, settings, metadata = context.cfg, context.settings, provenance.metadata
    metrics, class_aps = split_class_aps(result[0])
    return Row(
        method=cfg.SSQL_DET.METHOD or metadata.method or "",
        checkpoint=provenance.checkpoint_label,
        checkpoint_hash=provenance.sha256,
        config=config_label,
        dataset=shorten_dataset_name(context.dataset),
        bits=str(bits),
        scope=settings.scope,
        metrics=metrics,
        class_aps=class_aps,
        seed=cfg.SEED if cfg.SEED >= 0 or metadata.seed is None else metadata.seed,
        engine=context.engine.name,
        seconds=result[1],
        scheme=str(settings.scheme),
        calibration=context.quantization.calibration or settings.calibration,
        network=provenance.network,
        overrides={pattern: str(override) for pattern, override in settings.overrides.items()},
        placement=settings.scheme.placement,  # also a part of the scheme's text, for those who select rows by it
    )
