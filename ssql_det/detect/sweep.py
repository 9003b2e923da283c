"""A sweep: one detector, one calibration, one row for every bit-width. Each row is on disk before the next begins.

A folder holds one sweep. Started again it goes on behind the rows that are there; started again with another config,
other weights or another calibration it refuses, for rows that differ in what nobody sees are worth nothing. A folder
without a row yet is anybody's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ssql_det.convert import Checkpoint
from ssql_det.core import rows
from ssql_det.core.config import check_output_dir, check_same_config, flatten_config, rename_keys
from ssql_det.core.distributed import broadcast_from_main, is_main
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.rows import Row
from ssql_det.d2 import CfgNode, engine_name
from ssql_det.detect.config import IGNORED_KEYS, RENAMED_KEYS, TRAINING_EVALUATION_KEYS
from ssql_det.detect.datasets import hash_annotations
from ssql_det.detect.evaluation_data import build_evaluation_loader, select_calibration_images, take_rank_share
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import (
    EvaluatedDetector,
    EvaluationContext,
    QuantizationSettings,
    evaluate_quantized,
    make_row,
    prepare_evaluation,
)
from ssql_det.quant import Bits, Scheme
from ssql_det.quant.points import assign_bits
from ssql_det.quant.scheme import RE_ESTIMATED, TRAINED

RESULTS_NAME, QUANTIZATION_NAME, PLAN_NAME = "results.jsonl", "quantization.safetensors", "sweep.json"
_OLD_RANGES_NAME = "ranges.json"  # of min-max calibrations before there were schemes
_logger = logging.getLogger(__name__)


def sweep(
    cfg: CfgNode,
    config_label: str,
    model: nn.Module,
    checkpoint: Checkpoint,
    widths: Sequence[Bits],
    plan: QuantizationSettings,
) -> Iterator[Row]:
    """The rows of ``widths`` in their order, of ``OUTPUT_DIR``'s file where they are there, else evaluated.

    Under a process group the ranks share the images, and rank 0 writes.

    >>> for row in sweep(cfg, "voc_r18_c4.yaml", model, checkpoint, parse_widths("FP,8,4"), QuantizationSettings("all")):
    ...     print(row.bits, row.metrics["bbox/AP50"])
    """
    out = check_output_dir(cfg.OUTPUT_DIR)
    dataset = _only_test_set(cfg)
    plan.scheme.check_bits([*widths, *plan.overrides.values()])  # refused before anything is written
    assign_bits(detector_points(model, plan.scope, plan.scheme.placement), Bits.FP, plan.overrides)
    sha256 = checkpoint.source.sha256 if checkpoint.source else ""
    identity = _identity(cfg, dataset, sha256, plan)
    done = {row.bits: row for row in broadcast_from_main(lambda: _rows_of(out, identity))}
    images = build_evaluation_loader(cfg, dataset)
    origin = EvaluatedDetector(checkpoint.display_name, checkpoint.metadata, checkpoint.architecture.name, sha256)
    context: EvaluationContext | None = None
    for bits in widths:
        if str(bits) in done:
            _logger.info("%s is there already, in %s", bits, out / RESULTS_NAME)
            yield done[str(bits)]
            continue
        if context is None:
            calibration = select_calibration_images(cfg, plan.calibration)
            take_rank_share(calibration)  # what cannot be read is refused before anything is written
            broadcast_from_main(lambda: _claim(out, identity))
            context = prepare_evaluation(cfg, model, plan, dataset, images, calibration, out / QUANTIZATION_NAME)
        overrides = None if bits == Bits.FP else plan.overrides  # a row called FP is full precision
        row = make_row(context, config_label, bits, evaluate_quantized(context, bits, overrides), origin)
        if is_main():
            _keep_to_the_plan(out, identity)  # another may have begun while this one had no row
            if context.quantization.norm_statistics:  # those of this width are in it now
                context.quantization.save(out / QUANTIZATION_NAME)
            rows.append_row(out / RESULTS_NAME, row)
        yield row


def _only_test_set(cfg: CfgNode) -> str:
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(f"a sweep has one data set to evaluate on; DATASETS.TEST names {len(cfg.DATASETS.TEST)}")
    name: str = cfg.DATASETS.TEST[0]
    return name


def _identity(cfg: CfgNode, dataset: str, sha256: str, plan: QuantizationSettings) -> dict[str, Any]:
    """Everything that decides the rows' numbers, by plain keys."""
    return {
        **{
            key: value
            for key, value in flatten_config(cfg).items()
            if key not in (*IGNORED_KEYS, *TRAINING_EVALUATION_KEYS)
        },
        "weights' sha256": sha256,
        "the objects' sha256": hash_annotations(dataset),
        "engine": engine_name(),
        "--scope": plan.scope,
        "--calib-images": plan.calibration.images,
        "--calib-seed": plan.calibration.seed,
        "--scheme": str(plan.scheme),
        "--bits-file": {pattern: str(bits) for pattern, bits in plan.overrides.items()},
    }


def _rows_of(out: Path, identity: dict[str, Any]) -> list[Row]:
    """What is measured already. A folder that has rows of another plan is refused; while it has none, any may begin."""
    found = rows.read_rows(out / RESULTS_NAME) if (out / RESULTS_NAME).exists() else []
    if found:
        _keep_to_the_plan(out, identity)
    return found


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """From here on the folder is this sweep's; the calibration of a plan that came to no row goes."""
    before = _plan_of(out)
    is_other = any(json.dumps(before.get(key)) != json.dumps(identity.get(key)) for key in {**before, **identity})
    if not _rows_of(out, identity) and is_other and (out / QUANTIZATION_NAME).exists():
        (out / QUANTIZATION_NAME).unlink()
    if (out / _OLD_RANGES_NAME).exists() and not (out / QUANTIZATION_NAME).exists():
        _logger.warning("%s is of an older ssql_det and is not read; calibrating again", out / _OLD_RANGES_NAME)
    with atomic_write(out / PLAN_NAME, "w") as file:
        json.dump(identity, file, indent=1)


def _plan_of(out: Path) -> dict[str, Any]:
    """What decides the numbers of the folder's sweep; nothing where none has begun."""
    path = out / PLAN_NAME
    if not path.exists():
        for name in (RESULTS_NAME, QUANTIZATION_NAME):
            if (out / name).exists():
                raise UserError(f"{out / name} is of a sweep whose {PLAN_NAME} is gone; choose another OUTPUT_DIR")
        return {}
    try:
        return _upgraded(dict(json.loads(path.read_text("utf-8"))))
    except (RecursionError, TypeError, ValueError):
        raise UserError(f"{path} is damaged; choose another OUTPUT_DIR") from None


def _upgraded(plan: dict[str, Any]) -> dict[str, Any]:
    """An older plan may have former names, say whether norms were recalibrated, and have keys that decide nothing."""
    plan = rename_keys(plan, RENAMED_KEYS)
    if "--recalibrate-bn" in plan:
        plan["--scheme"] = str(Scheme(norms=RE_ESTIMATED if plan.pop("--recalibrate-bn") else TRAINED))
    return {key: value for key, value in plan.items() if key not in TRAINING_EVALUATION_KEYS}


def _keep_to_the_plan(out: Path, identity: dict[str, Any]) -> None:
    """Refuse where the folder has another plan, and say in what. The order of patterns is part of it."""
    check_same_config(_plan_of(out), identity, f"the sweep in {out}", "choose another OUTPUT_DIR")
