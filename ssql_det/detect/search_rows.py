"""Evaluate the assignment that a search chose on the test set, beside full precision and uniform bit-widths.

Each evaluation gives a result row. Rows that an earlier run of the search wrote are read, not evaluated again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ssql_det.convert import Checkpoint
from ssql_det.core import rows
from ssql_det.core.distributed import broadcast_from_main, is_main
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.json_files import read_json
from ssql_det.core.rows import Row
from ssql_det.d2 import CfgNode
from ssql_det.detect.datasets import hash_annotations
from ssql_det.detect.evaluation_data import CachedLoader
from ssql_det.detect.measurements import Measurer
from ssql_det.detect.quantized_evaluation import (
    DetectorProvenance,
    EvaluationContext,
    EvaluationEngine,
    QuantizationSettings,
    evaluate_quantized,
    make_row,
)
from ssql_det.detect.sweep import RESULTS_NAME, check_row
from ssql_det.detect.sweep import SETTINGS_NAME as SWEEP_NAME
from ssql_det.quant import Bits, CostProfile

SEARCH_NAME = "search.json"
_OBJECTS = "the objects' sha256"
Assigned = tuple[Bits, Mapping[str, Bits]]
"""A bit-width with overrides; none for a uniform bit-width."""


def evaluate_assignments(
    cfg: CfgNode,
    config_label: str,
    checkpoint: Checkpoint,
    settings: QuantizationSettings,
    measurer: Measurer,
    profile: CostProfile,
    loader: CachedLoader,
    assigned: Sequence[Assigned],
) -> Iterator[Row]:
    """Yield a row of the test set for each bit-width; all ranks call it."""
    (dataset,) = cfg.DATASETS.TEST
    path = measurer.file.folder / RESULTS_NAME
    found = broadcast_from_main(partial(_read_rows, measurer))
    sha256 = checkpoint.source.sha256 if checkpoint.source else ""
    provenance = DetectorProvenance(checkpoint.display_name, checkpoint.metadata, checkpoint.architecture.name, sha256)
    for bits, overrides in assigned:
        texts = {pattern: str(override) for pattern, override in overrides.items()}
        row = next((row for row in found if (row.bits, row.overrides) == (str(bits), texts)), None)
        if row is None:
            context = EvaluationContext(
                cfg,
                replace(settings, overrides=overrides),
                dataset,
                loader,
                measurer.quantization,
                measurer.norm_batches,
                profile,
                EvaluationEngine.simulated(),
            )
            row = make_row(context, config_label, bits, evaluate_quantized(context, bits, overrides), provenance)
            if is_main():
                rows.append_row(path, row)
        yield row


def check_search_folder(measurer: Measurer, dataset: str) -> None:
    """Raise a UserError if the folder has rows that are not of a search, or of another test set."""
    broadcast_from_main(partial(_check_folder, measurer.file.folder, hash_annotations(dataset)))


def _check_folder(folder: Path, objects_sha256: str) -> None:
    advice = "choose another OUTPUT_DIR"
    if (folder / SWEEP_NAME).exists():
        raise UserError(f"{folder} holds a sweep, with its rows; {advice}")
    if not (folder / RESULTS_NAME).exists():
        return
    if not (folder / SEARCH_NAME).exists():
        raise UserError(f"{folder / RESULTS_NAME} has no {SEARCH_NAME} beside it; {advice}")
    search = read_json(folder / SEARCH_NAME, advice, lambda content: isinstance(content, dict))
    if search.get(_OBJECTS) != objects_sha256:
        raise UserError(f"the rows in {folder / RESULTS_NAME} are of other objects in the test set; {advice}")


def write_search_file(measurer: Measurer, dataset: str, content: Mapping[str, Any]) -> None:
    """Write what was searched for, and the assignment that was chosen; only rank 0 calls this."""
    with atomic_write(measurer.file.folder / SEARCH_NAME, "w") as file:
        json.dump({**content, "test set": dataset, _OBJECTS: hash_annotations(dataset)}, file, indent=1)


def _read_rows(measurer: Measurer) -> list[Row]:
    path = measurer.file.folder / RESULTS_NAME
    found = rows.read_rows(path) if path.exists() else []
    for row in found:
        check_row(row, path, measurer.file.settings)
    return found
