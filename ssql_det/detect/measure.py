"""One detector measured at one bit-width: calibrate once, quantize, evaluate, and a row of what came out.

An evaluation is the engine's loop with the data set's own evaluator, its metrics under plain names.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssql_det.convert import Facts
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import from_main, is_main, world_size
from ssql_det.core.rows import Row
from ssql_det.d2 import (
    CfgNode,
    COCOEvaluator,
    DatasetEvaluator,
    FrozenBatchNorm2d,
    MetadataCatalog,
    PascalVOCDetectionEvaluator,
    engine,
    inference_on_dataset,
)
from ssql_det.detect.answers import answered
from ssql_det.detect.data import Batch, Decoded, calibration_images, in_eights, own_share, row_name
from ssql_det.detect.points import detector_points
from ssql_det.quant import Bits, Calibration, CostProfile, Quantization, Scheme, evaluate_at, profile_cost
from ssql_det.quant.hooks import shadowed
from ssql_det.quant.quantization_file import require_same_points

_logger = logging.getLogger(__name__)
_FOLDABLE = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


@dataclass(frozen=True)
class Plan:
    """What of a measurement is not in the config. ``overrides`` are bits for patterns of module paths."""

    scope: str
    calibration: Calibration = field(default_factory=Calibration)
    scheme: Scheme = field(default_factory=Scheme)
    overrides: Mapping[str, Bits] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationContext:
    """What all widths of a detector share on a data set: ``batches`` are the images it was calibrated with."""

    cfg: CfgNode
    plan: Plan
    dataset: str
    images: Decoded
    quantization: Quantization
    batches: Sequence[Batch]
    profile: CostProfile


def prepare(
    cfg: CfgNode,
    model: nn.Module,
    plan: Plan,
    dataset: str,
    images: Decoded,
    batches: Sequence[Batch] | None = None,
    saved: Path | None = None,
) -> EvaluationContext:
    """Calibrate the float network, or take the quantization that is ``saved`` for these weights."""
    points = detector_points(model, plan.scope, plan.scheme.placement)
    batches = batches or calibration_images(cfg, plan.calibration)
    if saved is not None and from_main(saved.exists):
        quantization = Quantization.load(saved, model, plan.scheme)
        require_same_points(points, quantization.points, saved)
        _logger.info("calibrated already: %s", saved)
    else:
        quantization = calibrated(cfg, model, plan, batches)
        if saved is not None and is_main():
            quantization.save(saved)
    model.eval()
    profile = from_main(lambda: profile_cost(model, points, _first(images)))
    return EvaluationContext(cfg, plan, dataset, images, quantization, batches, profile)


def _first(images: Decoded) -> Batch:
    with answered("the first test image cannot be read"):
        return next(iter(images))


def calibrated(cfg: CfgNode, model: nn.Module, plan: Plan, batches: Sequence[Batch]) -> Quantization:
    """What the float network is quantized by, and from which images: as many as there are, by their data's names."""
    quantization = Quantization(model, detector_points(model, plan.scope, plan.scheme.placement), plan.scheme)
    data = "+".join(map(row_name, cfg.DATASETS.TRAIN))
    quantization.calibration = replace(plan.calibration, images=len(batches), data=data)
    calibrate(quantization, batches)
    return quantization


def calibrate(quantization: Quantization, batches: Sequence[Batch]) -> None:
    """Of a detector: it is fed whole batches of the engine's dicts, the ranks share them."""
    if len(batches) < world_size():
        raise UserError(f"{world_size()} processes cannot share {len(batches)} images; calibrate with more")
    quantization.calibrate(own_share(batches), forward=feed)


def feed(network: nn.Module, batch: Batch) -> None:
    network(batch)


def evaluate(model: nn.Module, images: Decoded, dataset: str, is_fast: bool = True) -> dict[str, float]:
    """Metrics of the data set's own evaluator: ``{"bbox/AP": 41.2, "bbox/AP50": 62.0, ...}``.

    Under a process group each rank brings its share of the images, and all get the metrics of all.
    """
    faster = fast(model) if is_fast else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, answered(f"{dataset} cannot be evaluated on"), faster:
        results = inference_on_dataset(model, images, _evaluator(dataset, scratch))
    return from_main(lambda: dict(_flat(results or {})))


def _evaluator(dataset: str, scratch: str) -> DatasetEvaluator:
    kind = getattr(MetadataCatalog.get(dataset), "evaluator_type", None)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset)
    if kind == "coco":
        return COCOEvaluator(dataset, output_dir=scratch)
    raise UserError(f"{dataset} is evaluated as {kind!r}; only COCO's and VOC's way are known here")


def _flat(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Without the APs of single classes: a row has what tables are made of."""
    return [
        (f"{task}/{name}", float(value))
        for task, metrics in results.items()
        for name, value in metrics.items()
        if "-" not in name and not (isinstance(value, float) and math.isinf(value))
    ]


def measure(
    context: EvaluationContext, bits: Bits, overrides: Mapping[str, Bits] | None = None
) -> tuple[dict[str, float], float]:
    """Metrics and costs at one width, and the seconds it took. The network is float again afterwards.

    ``GFLOPs`` are billions of multiply-adds, ``GBOPs`` of bit-operations, of the first image.
    """
    quantization, is_fast = context.quantization, context.cfg.SSQL_DET.FAST_EVALUATION
    _logger.info("evaluating at %s on %s", bits, context.dataset)
    start = time.perf_counter()
    found = partial(evaluate, quantization.model, context.images, context.dataset, is_fast)
    metrics = evaluate_at(quantization, bits, found, overrides, in_eights(context.batches), feed)
    cost = context.profile.at(bits, overrides)
    metrics |= {"MB": cost.bytes / 1e6, "GFLOPs": cost.macs / 1e9, "GBOPs": cost.bit_ops / 1e9}
    return metrics, round(time.perf_counter() - start, 2)


@dataclass(frozen=True)
class Origin:
    """What a detector is, for its rows: its file or the moment of its training, and what its backbone is."""

    checkpoint: str
    facts: Facts
    network: str
    sha256: str = ""


def make_row(
    context: EvaluationContext,
    config_name: str,
    bits: Bits,
    measured: tuple[Mapping[str, float], float],
    origin: Origin,
) -> Row:
    """A measurement with everything that it depends on. Method and seed are the config's, else the checkpoint's."""
    cfg, plan, (metrics, seconds) = context.cfg, context.plan, measured
    return Row(
        method=cfg.SSQL_DET.METHOD or origin.facts.method or "",
        checkpoint=origin.checkpoint,
        checkpoint_hash=origin.sha256,
        config=config_name,
        dataset=row_name(context.dataset),
        bits=str(bits),
        scope=plan.scope,
        metrics=metrics,
        seed=cfg.SEED if cfg.SEED >= 0 or origin.facts.seed is None else origin.facts.seed,
        engine=engine(),
        seconds=seconds,
        scheme=str(plan.scheme),
        calibration=context.quantization.calibration or plan.calibration,
        network=origin.network,
        overrides={pattern: str(width) for pattern, width in plan.overrides.items()},
        placement=plan.scheme.placement,
    )


@contextmanager
def fast(model: nn.Module) -> Iterator[None]:
    """Inside, the evaluation mode of ``model`` is faster, and equal but for the rounding of floats.

    The innermost of blocks: what weights and statistics are now is taken.

    >>> with quantization.at(Bits(4, 4)), fast(model), torch.no_grad():
    ...     detections = model(images)
    """
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                stack.enter_context(shadowed(layer, **_faster(layer)))
        yield


@torch.no_grad()
def _faster(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """Weight, and where a norm is folded also bias and norm, to stand in for a layer's own."""
    norm: Any = getattr(layer, "norm", None)
    if isinstance(layer, nn.ConvTranspose2d) or not isinstance(norm, _FOLDABLE):
        return {"weight": _laid_out(layer.weight)}
    statistics: tuple[Any, ...] = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
    return {"weight": _laid_out(weight), "bias": bias.detach(), "norm": None}


def _laid_out(weight: Tensor) -> Tensor:
    """As convs on the CPU are fastest; their inputs and outputs follow. On a GPU nobody has measured it."""
    format = torch.channels_last if weight.device.type == "cpu" else torch.contiguous_format
    return weight.detach().contiguous(memory_format=format)
