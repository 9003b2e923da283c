"""A sweep evaluates one detector at several bit-widths, with one calibration, and writes a result row for each.

Every row is written before the next evaluation begins. A folder holds one sweep, whose settings are in ``sweep.json``.
If the same sweep is started again, it evaluates only the bit-widths without a row; a sweep with other settings is an
error once the folder has a row.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ssql_det.convert import Checkpoint
from ssql_det.core import rows
from ssql_det.core.config import check_output_dir, check_same_config, rename_keys
from ssql_det.core.distributed import broadcast_from_main, is_main
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write, check_not_an_input
from ssql_det.core.files import sha256 as hash_file
from ssql_det.core.json_files import read_json
from ssql_det.core.rows import Row
from ssql_det.d2 import CfgNode
from ssql_det.detect.config import RENAMED_KEYS, TRAINING_EVALUATION_KEYS
from ssql_det.detect.datasets import hash_annotations
from ssql_det.detect.evaluation_data import build_evaluation_loader, select_calibration_images, take_rank_share
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import (
    DetectorProvenance,
    EvaluationContext,
    EvaluationEngine,
    QuantizationSettings,
    collect_settings,
    evaluate_quantized,
    make_row,
    prepare_evaluation,
)
from ssql_det.detect.saved_quantization import check_quantization_file
from ssql_det.quant import Bits, Scheme
from ssql_det.quant.points import assign_bits
from ssql_det.quant.scheme import RE_ESTIMATED, TRAINED
from ssql_det.quant.training import QUANTIZATION_NAME

RESULTS_NAME, SETTINGS_NAME = "results.jsonl", "sweep.json"
_METRIC = "bbox/AP"  # every evaluation has it
_FORMER_RANGES_NAME = "ranges.json"  # the file that held the calibration in earlier versions
_logger = logging.getLogger(__name__)


def sweep(
    cfg: CfgNode,
    config_label: str,  # the config file and the keys changed on the command line, from make_config_label
    model: nn.Module,
    checkpoint: Checkpoint,
    bit_widths: Sequence[Bits],
    settings: QuantizationSettings,
    quantization_file: Path | None = None,
    engine: EvaluationEngine | None = None,
) -> Iterator[Row]:
    """Yield a row per bit-width: read from ``OUTPUT_DIR`` if an earlier run wrote it, otherwise evaluated.

    The weights of ``checkpoint`` are loaded into ``model`` already; here it says where they are from. With a
    ``quantization_file``, which must have these ``settings``, the detector is not calibrated: the sweep uses a copy.
    Under a process group each rank evaluates its share of the images, and rank 0 writes. The default ``engine`` is
    :meth:`EvaluationEngine.simulated`.
    """
    engine = engine or EvaluationEngine.simulated()
    folder = check_output_dir(cfg.OUTPUT_DIR)
    dataset = _get_test_dataset(cfg)
    settings.scheme.check_bits([*bit_widths, *settings.overrides.values()])
    points = detector_points(model, settings.scope, settings.scheme.placement)
    assign_bits(points, Bits.FP, settings.overrides)  # raises if a pattern matches no point
    sha256, file_sha256, images = checkpoint.source.sha256 if checkpoint.source else "", "", None
    if quantization_file is None:
        settings.scheme.check_learns_nothing(bit_widths)
    else:
        check_not_an_input(folder / QUANTIZATION_NAME, [quantization_file])
        images = check_quantization_file(quantization_file, cfg, model, bit_widths, settings)
        file_sha256 = broadcast_from_main(partial(hash_file, quantization_file))
    sweep_settings = _collect_sweep_settings(cfg, dataset, sha256, settings, file_sha256, engine.name)
    finished_rows = {row.bits: row for row in broadcast_from_main(lambda: _read_finished_rows(folder, sweep_settings))}
    loader = build_evaluation_loader(cfg, dataset)
    provenance = DetectorProvenance(checkpoint.display_name, checkpoint.metadata, checkpoint.architecture.name, sha256)
    context: EvaluationContext | None = None
    for bits in bit_widths:
        if str(bits) in finished_rows:
            _logger.info("%s is already evaluated; using its row in %s", bits, folder / RESULTS_NAME)
            yield finished_rows[str(bits)]
            continue
        if context is None:
            if quantization_file is None:
                images = select_calibration_images(cfg, settings.calibration)
            batches = () if images is None else images
            take_rank_share(batches)  # decodes this rank's images: a damaged one fails before anything is written
            broadcast_from_main(lambda: _claim_folder(folder, sweep_settings, quantization_file))
            quantization_path = folder / QUANTIZATION_NAME
            context = prepare_evaluation(cfg, model, settings, dataset, loader, batches, quantization_path, engine)
        overrides = None if bits == Bits.FP else settings.overrides
        row = make_row(context, config_label, bits, evaluate_quantized(context, bits, overrides), provenance)
        if is_main():
            _check_same_sweep(folder, sweep_settings)  # another sweep may have started in the folder since
            if context.quantization.repairs:  # the evaluation may have corrected norms
                context.quantization.save(folder / QUANTIZATION_NAME)
            rows.append_row(folder / RESULTS_NAME, row)
        yield row


def _get_test_dataset(cfg: CfgNode) -> str:
    if len(cfg.DATASETS.TEST) != 1:
        raise UserError(
            f"a sweep evaluates on one data set; DATASETS.TEST must have one name, got {len(cfg.DATASETS.TEST)}"
        )
    name: str = cfg.DATASETS.TEST[0]
    return name


def _collect_sweep_settings(
    cfg: CfgNode, dataset: str, sha256: str, settings: QuantizationSettings, file_sha256: str, engine: str
) -> dict[str, Any]:
    """All settings that determine the metrics of a sweep, as ``sweep.json`` has them."""
    return {
        **collect_settings(cfg, sha256, settings, file_sha256, engine),
        "the objects' sha256": hash_annotations(dataset),  # of the test images' boxes and classes
        "--bits-file": {pattern: str(bits) for pattern, bits in settings.overrides.items()},
    }


def _read_finished_rows(folder: Path, sweep_settings: dict[str, Any]) -> list[Row]:
    """The rows in the folder; raise a UserError if they, or one of them, belong to another sweep or have no result."""
    file = folder / RESULTS_NAME
    finished_rows = rows.read_rows(file) if file.exists() else []
    if finished_rows:
        _check_same_sweep(folder, sweep_settings)
    for row in finished_rows:
        check_row(row, file, sweep_settings)
    return finished_rows


def check_row(row: Row, file: Path, settings: dict[str, Any]) -> None:
    """Raise a UserError if a row of a folder with these settings belongs to others, or has no result."""
    where, advice = f"the row of {row.bits} in {file}", "delete that line to evaluate again"
    row_settings = {
        "weights' sha256": row.checkpoint_hash,
        "engine": row.engine,
        "--scope": row.scope,
        "--calib-seed": row.calibration.seed,
        "reconstruction images": row.calibration.reconstruction_images,
        "selection images": row.calibration.selection_images,
        "--scheme": row.scheme,
        "--bits-file": row.overrides,
    }
    row_settings = {key: value for key, value in row_settings.items() if key in settings}
    check_same_config(row_settings, {key: settings[key] for key in row_settings}, where, advice)
    if _METRIC not in row.metrics:
        raise UserError(f"{where} has no {_METRIC}; {advice}")


def _claim_folder(folder: Path, sweep_settings: dict[str, Any], quantization_file: Path | None) -> None:
    """Write this sweep's settings, and copy its quantization file. Another sweep's calibration is deleted; it is an
    error if that sweep has a row."""
    saved = _read_sweep_settings(folder)
    is_other_sweep = any(
        json.dumps(saved.get(key)) != json.dumps(sweep_settings.get(key)) for key in {**saved, **sweep_settings}
    )
    if not _read_finished_rows(folder, sweep_settings) and is_other_sweep and (folder / QUANTIZATION_NAME).exists():
        (folder / QUANTIZATION_NAME).unlink()
    if (folder / _FORMER_RANGES_NAME).exists() and not (folder / QUANTIZATION_NAME).exists():
        _logger.warning(
            "%s was written by an earlier version and is ignored; calibrating again", folder / _FORMER_RANGES_NAME
        )
    with atomic_write(folder / SETTINGS_NAME, "w") as file:
        json.dump(sweep_settings, file, indent=1)
    if quantization_file is not None and not (folder / QUANTIZATION_NAME).exists():
        with open(quantization_file, "rb") as source, atomic_write(folder / QUANTIZATION_NAME) as copy:
            shutil.copyfileobj(source, copy)


def _read_sweep_settings(folder: Path) -> dict[str, Any]:
    """The settings of the folder's sweep; empty if no sweep was started in the folder."""
    file = folder / SETTINGS_NAME
    if not file.exists():
        for name in (RESULTS_NAME, QUANTIZATION_NAME):
            if (folder / name).exists():
                raise UserError(
                    f"{folder / name} belongs to a sweep whose {SETTINGS_NAME} is missing; choose another OUTPUT_DIR"
                )
        return {}
    saved = read_json(file, "choose another OUTPUT_DIR", lambda content: isinstance(content, dict))
    return _upgrade_sweep_settings(saved)


def _upgrade_sweep_settings(saved: dict[str, Any]) -> dict[str, Any]:
    """Translate the keys of earlier versions, and drop those that only evaluations during a training use."""
    saved = rename_keys(saved, RENAMED_KEYS)
    if "--recalibrate-bn" in saved:
        saved["--scheme"] = str(Scheme(norms=RE_ESTIMATED if saved.pop("--recalibrate-bn") else TRAINED))
    later_settings = {"reconstruction images": 0, "selection images": 0, "--quantization": ""}
    saved = later_settings | saved  # which sweeps of earlier versions do not have
    return {key: value for key, value in saved.items() if key not in TRAINING_EVALUATION_KEYS}


def _check_same_sweep(folder: Path, sweep_settings: dict[str, Any]) -> None:
    """Raise a UserError if the folder has another sweep; the order of patterns in a bits file also matters."""
    saved = _read_sweep_settings(folder)
    check_same_config(saved, sweep_settings, f"the sweep in {folder}", "choose another OUTPUT_DIR")
