"""A sweep: one detector, one calibration, one row for every bit-width. Each row is on disk before the next begins.

A folder holds one sweep. Started again it goes on behind the rows that are there; started again with another config,
other weights or another calibration it refuses, for rows that differ in what nobody sees are worth nothing.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ssql_det.convert import Checkpoint
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.rows import Row
from ssql_det.d2 import CfgNode, engine
from ssql_det.detect.data import Batch, Decoded, calibration_images, evaluation_images
from ssql_det.detect.evaluate import evaluate
from ssql_det.detect.points import detector_points
from ssql_det.detect.recalibrate import recalibrated
from ssql_det.quant import Bits, CostProfile, Ranges, calibrate, profile_cost, quantized

RESULTS_NAME, RANGES_NAME, PLAN_NAME = "results.jsonl", "ranges.json", "sweep.json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What of a sweep is not in its config. ``overrides`` are bits for patterns of module paths."""

    scope: str
    images: int
    seed: int = 0
    recalibrate_bn: bool = False
    overrides: Mapping[str, Bits] = field(default_factory=dict)

    @property
    def bn(self) -> str:
        return ", BN recalibrated" if self.recalibrate_bn else ""


def parse_widths(text: str) -> list[Bits]:
    """Bit-widths of a command: ``FP``, ``8`` for weights and activations alike, ``2w4a``.

    >>> [str(bits) for bits in parse_widths("FP,8,2w4a")]
    ['FP', '8w8a', '2w4a']
    """
    parts = [part.strip() for part in text.split(",")]
    widths = [Bits(int(part), int(part)) if part.isdecimal() else Bits.parse(part) for part in parts]
    return list(dict.fromkeys(widths))


def sweep(
    cfg: CfgNode, config_name: str, model: nn.Module, checkpoint: Checkpoint, widths: Sequence[Bits], plan: Plan
) -> Iterator[Row]:
    """The rows of ``widths`` in their order, of ``OUTPUT_DIR``'s file where they are there, else evaluated.

    >>> for row in sweep(cfg, "voc_r18_c4.yaml", model, checkpoint, parse_widths("FP,8,4"), Plan("all", 256)):
    ...     print(row.bits, row.metrics["bbox/AP50"])
    """
    out = Path(cfg.OUTPUT_DIR)
    dataset = _only_test_set(cfg)
    _keep_to_the_plan(out / PLAN_NAME, _identity(cfg, checkpoint, plan))
    done = {row.bits: row for row in (rows.read(out / RESULTS_NAME) if (out / RESULTS_NAME).exists() else [])}
    points = detector_points(model, plan.scope)
    images = evaluation_images(cfg, dataset)
    tools: _Tools | None = None
    for bits in widths:
        if str(bits) in done:
            _logger.info("%s is there already, in %s", bits, out / RESULTS_NAME)
            yield done[str(bits)]
            continue
        if tools is None:
            tools = _prepare(cfg, model, points, plan, out, images)
        start = time.perf_counter()
        metrics = _at_width(model, points, tools, bits, plan, images, dataset)
        cost = tools.profile.at(bits, plan.overrides)
        metrics |= {"MB": cost.bytes / 1e6, "GFLOPs": cost.macs / 1e9, "GBOPs": cost.bit_ops / 1e9}
        row = Row(
            method=cfg.SSQL.METHOD or checkpoint.facts.method or "",
            checkpoint=checkpoint.called,
            checkpoint_hash=checkpoint.source.sha256 if checkpoint.source else "",
            config=config_name,
            dataset=dataset,
            bits=str(bits),
            scope=plan.scope,
            calibration=f"{plan.images} images of {'+'.join(cfg.DATASETS.TRAIN)}, seed {plan.seed}, MinMax{plan.bn}",
            metrics=metrics,
            seed=cfg.SEED,
            engine=engine(),
            seconds=round(time.perf_counter() - start, 2),
        )
        rows.append(out / RESULTS_NAME, row)
        yield row


@dataclass(frozen=True)
class _Tools:
    """What every width of a sweep shares."""

    calibration: list[Batch]
    ranges: Ranges
    profile: CostProfile


def _prepare(cfg: CfgNode, model: nn.Module, points: Any, plan: Plan, out: Path, images: Decoded) -> _Tools:
    """The ranges are saved with the model's signature: another sweep of these weights may take them."""
    calibration = calibration_images(cfg, plan.images, plan.seed)
    if (out / RANGES_NAME).exists():
        ranges = Ranges.load(out / RANGES_NAME, model, points)
        _logger.info("calibrated already: %s", out / RANGES_NAME)
    else:
        ranges = calibrate(model, calibration, points, forward=lambda network, batch: network(batch))
        ranges.save(out / RANGES_NAME, model)
    return _Tools(calibration, ranges, profile_cost(model.eval(), points, next(iter(images))))


def _at_width(
    model: nn.Module, points: Any, tools: _Tools, bits: Bits, plan: Plan, images: Decoded, dataset: str
) -> dict[str, float]:
    _logger.info("evaluating at %s on %s", bits, dataset)
    with tempfile.TemporaryDirectory() as scratch, quantized(model, points, tools.ranges, bits, plan.overrides):
        if not plan.recalibrate_bn:
            return evaluate(model, images, dataset, scratch)
        with recalibrated(model, tools.calibration):
            return evaluate(model, images, dataset, scratch)


def _only_test_set(cfg: CfgNode) -> str:
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"a sweep has one data set to evaluate on; DATASETS.TEST names {len(cfg.DATASETS.TEST)}")
    name: str = cfg.DATASETS.TEST[0]
    return name


def _identity(cfg: CfgNode, checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """Everything that decides the rows' numbers, by plain keys."""
    return {
        **{key: value for key, value in _leaves(yaml.safe_load(cfg.dump())) if key not in _OF_NO_MATTER},
        "weights' sha256": checkpoint.source.sha256 if checkpoint.source else "",
        "engine": engine(),
        "--scope": plan.scope,
        "--calib-images": plan.images,
        "--calib-seed": plan.seed,
        "--recalibrate-bn": plan.recalibrate_bn,
        "--bits-file": {pattern: str(bits) for pattern, bits in plan.overrides.items()},
    }


_OF_NO_MATTER = ("OUTPUT_DIR", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keep_to_the_plan(path: Path, identity: dict[str, Any]) -> None:
    """Write the plan of a new folder; refuse where the folder has another one, and say in what."""
    if not path.exists():
        with atomic_write(path, "w") as file:
            json.dump(identity, file, indent=1)
        return
    try:
        before = json.loads(path.read_text("utf-8"))
        differing = [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; choose another OUTPUT_DIR") from None
    if differing:
        key = differing[0]
        raise UserError(
            f"{path.parent} holds a sweep with {key} {before.get(key)!r}, now it is {identity.get(key)!r}"
            f"{f' ({len(differing)} such differences)' if len(differing) > 1 else ''}; choose another OUTPUT_DIR"
        )
