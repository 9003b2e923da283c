"""One detector measured at one bit-width: calibrate once, quantize, evaluate, and a row of what came out.

An evaluation is the engine's loop with the data set's own evaluator, its metrics under plain names.
"""

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
from ssql_det.d2 import (
    CfgNode,
    engine_name,
)
from ssql_det.detect.datasets import shorten_dataset_name
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import (
    Batch,
    CachedLoader,
    merge_batches,
    select_calibration_images,
    take_rank_share,
)
from ssql_det.detect.points import detector_points
from ssql_det.quant import Bits, Calibration, CostProfile, Quantization, Scheme, evaluate_at_width, profile_cost
from ssql_det.quant.quantization_file import require_same_points

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizationSettings:
    """What of a measurement is not in the config. ``overrides`` are bits for patterns of module paths."""

    scope: str
    calibration: Calibration = field(default_factory=Calibration)
    scheme: Scheme = field(default_factory=Scheme)
    overrides: Mapping[str, Bits] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationContext:
    """What all widths of a detector share on a data set: ``batches`` are the images it was calibrated with."""

    cfg: CfgNode
    plan: QuantizationSettings
    dataset: str
    images: CachedLoader
    quantization: Quantization
    batches: Sequence[Batch]
    profile: CostProfile


def prepare_evaluation(
    cfg: CfgNode,
    model: nn.Module,
    plan: QuantizationSettings,
    dataset: str,
    images: CachedLoader,
    batches: Sequence[Batch] | None = None,
    saved: Path | None = None,
) -> EvaluationContext:
    """Calibrate the float network, or take the quantization that is ``saved`` for these weights."""
    points = detector_points(model, plan.scope, plan.scheme.placement)
    batches = batches or select_calibration_images(cfg, plan.calibration)
    if saved is not None and broadcast_from_main(saved.exists):
        quantization = Quantization.load(saved, model, plan.scheme)
        require_same_points(points, quantization.points, saved)
        _logger.info("calibrated already: %s", saved)
    else:
        quantization = quantize_detector(cfg, model, plan, batches)
        if saved is not None and is_main():
            quantization.save(saved)
    model.eval()
    profile = broadcast_from_main(lambda: profile_cost(model, points, _first(images)))
    return EvaluationContext(cfg, plan, dataset, images, quantization, batches, profile)


def _first(images: CachedLoader) -> Batch:
    with translate_errors("the first test image cannot be read"):
        return next(iter(images))


def quantize_detector(
    cfg: CfgNode, model: nn.Module, plan: QuantizationSettings, batches: Sequence[Batch]
) -> Quantization:
    """What the float network is quantized by, and from which images: as many as there are, by their data's names."""
    quantization = Quantization(model, detector_points(model, plan.scope, plan.scheme.placement), plan.scheme)
    data = "+".join(map(shorten_dataset_name, cfg.DATASETS.TRAIN))
    quantization.calibration = replace(plan.calibration, images=len(batches), data=data)
    calibrate_detector(quantization, batches)
    return quantization


def calibrate_detector(quantization: Quantization, batches: Sequence[Batch]) -> None:
    """Of a detector: it is fed whole batches of the engine's dicts, the ranks share them."""
    if len(batches) < world_size():
        raise UserError(f"{world_size()} processes cannot share {len(batches)} images; calibrate with more")
    quantization.calibrate(take_rank_share(batches), forward=run_detector)


def run_detector(network: nn.Module, batch: Batch) -> None:
    network(batch)


def evaluate_quantized(
    context: EvaluationContext, bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> tuple[dict[str, float], float]:
    """Metrics and costs at one width, and the seconds it took. The network is float again afterwards.

    ``GFLOPs`` are billions of multiply-adds, ``GBOPs`` of bit-operations, of the first image.
    """
    quantization, is_fast = context.quantization, context.cfg.SSQL_DET.FAST_EVALUATION
    _logger.info("evaluating at %s on %s", bits, context.dataset)
    start = time.perf_counter()
    found = partial(evaluate, quantization.model, context.images, context.dataset, is_fast)
    metrics = evaluate_at_width(quantization, bits, found, overrides, merge_batches(context.batches), run_detector)
    cost = context.profile.at(bits, overrides)
    metrics |= {"MB": cost.bytes / 1e6, "GFLOPs": cost.macs / 1e9, "GBOPs": cost.bit_ops / 1e9}
    return metrics, round(time.perf_counter() - start, 2)


@dataclass(frozen=True)
class EvaluatedDetector:
    """What a detector is, for its rows: its file or the moment of its training, and what its backbone is."""

    checkpoint: str
    facts: Metadata
    network: str
    sha256: str = ""


def make_row(
    context: EvaluationContext,
    config_label: str,
    bits: Bits,
    measured: tuple[Mapping[str, float], float],
    origin: EvaluatedDetector,
) -> Row:
    """A measurement with everything that it depends on. Method and seed are the config's, else the checkpoint's."""
    cfg, plan, (metrics, seconds) = context.cfg, context.plan, measured
    return Row(
        method=cfg.SSQL_DET.METHOD or origin.facts.method or "",
        checkpoint=origin.checkpoint,
        checkpoint_hash=origin.sha256,
        config=config_label,
        dataset=shorten_dataset_name(context.dataset),
        bits=str(bits),
        scope=plan.scope,
        metrics=metrics,
        seed=cfg.SEED if cfg.SEED >= 0 or origin.facts.seed is None else origin.facts.seed,
        engine=engine_name(),
        seconds=seconds,
        scheme=str(plan.scheme),
        calibration=context.quantization.calibration or plan.calibration,
        network=origin.network,
        overrides={pattern: str(width) for pattern, width in plan.overrides.items()},
        placement=plan.scheme.placement,
    )
