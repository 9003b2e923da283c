"""One detector measured at one bit-width: calibrate once, quantize, evaluate, and a row of what came out."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ssql_det.convert import Facts
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import from_main, is_main, world_size
from ssql_det.core.rows import Row
from ssql_det.d2 import CfgNode, engine
from ssql_det.detect.answers import answered
from ssql_det.detect.data import Batch, Decoded, calibration_images, own_share
from ssql_det.detect.evaluate import evaluate
from ssql_det.detect.own_data import row_name
from ssql_det.detect.points import detector_points
from ssql_det.quant import Bits, CostProfile, QuantPoint, Ranges, calibrate, profile_cost, quantized, recalibrated

_TOGETHER = 8
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What of a measurement is not in the config. ``overrides`` are bits for patterns of module paths."""

    scope: str
    images: int
    seed: int = 0
    recalibrate_bn: bool = False
    overrides: Mapping[str, Bits] = field(default_factory=dict)


@dataclass(frozen=True)
class Tools:
    """What every width shares: one calibration, one profile of costs, one way through the network."""

    points: tuple[QuantPoint, ...]
    calibration: Sequence[Batch]
    ranges: Ranges
    profile: CostProfile
    is_fast: bool = True


def prepare(
    cfg: CfgNode,
    model: nn.Module,
    plan: Plan,
    images: Decoded,
    calibration: Sequence[Batch] | None = None,
    saved: Path | None = None,
) -> Tools:
    """Calibrate the float network, or take the ranges that are ``saved`` for these weights."""
    points = detector_points(model, plan.scope)
    calibration = calibration or calibration_images(cfg, plan.images, plan.seed)
    ranges = from_main(lambda: Ranges.load(saved, model, points) if saved is not None and saved.exists() else None)
    if ranges is not None:
        _logger.info("calibrated already: %s", saved)
    else:
        ranges = calibrated(model, points, calibration)
        if saved is not None and is_main():
            ranges.save(saved, model)
    model.eval()
    profile = from_main(lambda: profile_cost(model, points, _first(images)))
    return Tools(points, calibration, ranges, profile, cfg.SSQL.FAST_EVALUATION)


def _first(images: Decoded) -> Batch:
    with answered("the first test image cannot be read"):
        return next(iter(images))


def calibrated(model: nn.Module, points: Sequence[QuantPoint], batches: Sequence[Batch]) -> Ranges:
    """The ranges of a detector's points: it is fed whole batches of the engine's dicts, the ranks share them."""
    if len(batches) < world_size():
        raise UserError(f"{world_size()} processes cannot share {len(batches)} images; calibrate with more")
    return calibrate(model, own_share(batches), points, forward=_feed)


def _feed(network: nn.Module, batch: Batch) -> None:
    network(batch)


def following(model: nn.Module, batches: Sequence[Batch]) -> AbstractContextManager[None]:
    """Norms follow what these images make of the network as it is now, eight at a time: one image has no variance."""
    images = [image for batch in batches for image in batch]
    together = [images[first : first + _TOGETHER] for first in range(0, len(images), _TOGETHER)]
    return recalibrated(model, together, _feed)


def measure(
    model: nn.Module, tools: Tools, bits: Bits, plan: Plan, images: Decoded, dataset: str
) -> tuple[dict[str, float], float]:
    """Metrics and costs at one width, and the seconds it took. The network is float again afterwards.

    ``GFLOPs`` are billions of multiply-adds, ``GBOPs`` of bit-operations, of the first image.
    """
    _logger.info("evaluating at %s on %s", bits, dataset)
    start = time.perf_counter()
    at_width = quantized(model, tools.points, tools.ranges, bits, plan.overrides)
    norms = following(model, tools.calibration) if plan.recalibrate_bn else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, at_width, norms:
        metrics = evaluate(model, images, dataset, scratch, tools.is_fast)
    cost = tools.profile.at(bits, plan.overrides)
    metrics |= {"MB": cost.bytes / 1e6, "GFLOPs": cost.macs / 1e9, "GBOPs": cost.bit_ops / 1e9}
    return metrics, round(time.perf_counter() - start, 2)


def make_row(
    cfg: CfgNode,
    config_name: str,
    dataset: str,
    bits: Bits,
    plan: Plan,
    calibrated_with: int,
    metrics: Mapping[str, float],
    seconds: float,
    facts: Facts,
    checkpoint: str,
    checkpoint_hash: str = "",
) -> Row:
    """A measurement with everything that it depends on. Method and seed are the config's, else the checkpoint's."""
    bn = ", BN recalibrated" if plan.recalibrate_bn else ""
    own = "".join(f", {pattern} at {width}" for pattern, width in plan.overrides.items())
    calibrated_on = "+".join(map(row_name, cfg.DATASETS.TRAIN))
    return Row(
        method=cfg.SSQL.METHOD or facts.method or "",
        checkpoint=checkpoint,
        checkpoint_hash=checkpoint_hash,
        config=config_name,
        dataset=row_name(dataset),
        bits=str(bits),
        scope=plan.scope,
        calibration=f"{calibrated_with} images of {calibrated_on}, seed {plan.seed}, MinMax{bn}{own}",
        metrics=metrics,
        seed=cfg.SEED if cfg.SEED >= 0 or facts.seed is None else facts.seed,
        engine=engine(),
        seconds=seconds,
    )
