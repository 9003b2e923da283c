"""Evaluations during a training, at full precision and at few bits, written as rows beside the run."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from ssql_det.convert import Metadata
from ssql_det.core import rows
from ssql_det.core.distributed import broadcast_from_main, is_main, world_size
from ssql_det.core.errors import UserError
from ssql_det.core.rng import RngState
from ssql_det.d2 import CfgNode
from ssql_det.detect.datasets import shorten_dataset_name
from ssql_det.detect.evaluation_data import build_evaluation_loader
from ssql_det.detect.quantized_evaluation import (
    DetectorProvenance,
    EvaluationContext,
    QuantizationSettings,
    evaluate_quantized,
    make_row,
    prepare_evaluation,
)
from ssql_det.quant import Calibration, Scheme, parse_bit_widths

EVALUATIONS_NAME = "evaluations.jsonl"
_FORMER_NAME = "looks.jsonl"  # of the same file in runs of earlier versions


class PeriodicEvaluation:
    """Evaluates every ``SSQL_DET.EVAL_PERIOD`` (or ``TEST.EVAL_PERIOD``) iterations and after the last one."""

    def __init__(self, cfg: CfgNode, config_label: str, metadata: Metadata, network: str) -> None:
        self._cfg, self._config_label, self._metadata, self._network = cfg, config_label, metadata, network
        self._period = cfg.SSQL_DET.EVAL_PERIOD or cfg.TEST.EVAL_PERIOD
        self._widths = parse_bit_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS)))
        self._settings = QuantizationSettings(
            cfg.SSQL_DET.SCOPE, Calibration(cfg.SSQL_DET.CALIB_IMAGES), Scheme.parse(cfg.SSQL_DET.SCHEME)
        )
        if self._period > 0 and world_size() > cfg.SSQL_DET.CALIB_IMAGES:
            raise UserError(
                f"calibration needs at least 1 image per process, of {world_size()}; got SSQL_DET.CALIB_IMAGES "
                f"{cfg.SSQL_DET.CALIB_IMAGES}"
            )
        self._folder = Path(cfg.OUTPUT_DIR)
        datasets = cfg.DATASETS.TEST if self._period > 0 else ()
        self._loaders = {name: build_evaluation_loader(cfg, name) for name in datasets}  # refused now, not in mid-run

    def is_due(self, iteration: int, last: int) -> bool:
        return self._period > 0 and ((iteration + 1) % self._period == 0 or iteration == last)

    def clear(self) -> None:
        """Delete the rows of a run that was killed before its first checkpoint; a new run begins in its folder."""
        for name in (EVALUATIONS_NAME, _FORMER_NAME):
            (self._folder / name).unlink(missing_ok=True)

    def evaluate(self, model: nn.Module, iteration: int) -> dict[str, float]:
        """Write a row per bit-width and test set; returns their metrics by ``dataset/bits/metric``.

        Rows that a killed run wrote after its last checkpoint are reused. The random generators stay as they are.
        """
        checkpoint = f"iteration {iteration}"
        detector = DetectorProvenance(checkpoint, self._metadata, self._network)
        finished = {(row.checkpoint, row.dataset, row.bits): row for row in broadcast_from_main(self._read_rows)}
        generators = RngState.capture()
        scalars: dict[str, float] = {}
        for dataset, loader in self._loaders.items():
            name = shorten_dataset_name(dataset)
            context: EvaluationContext | None = None
            for bits in self._widths:
                row = finished.get((checkpoint, name, str(bits)))
                if row is None:
                    context = context or prepare_evaluation(self._cfg, model, self._settings, dataset, loader)
                    row = make_row(context, self._config_label, bits, evaluate_quantized(context, bits), detector)
                    if is_main():
                        rows.append_row(self._folder / EVALUATIONS_NAME, row)
                scalars |= {
                    f"{name}/{bits}/{metric}": math.nan if value is None else value
                    for metric, value in row.metrics.items()
                    if "/" in metric  # the evaluator's, without the costs
                }
        generators.restore()
        return scalars

    def _read_rows(self) -> list[rows.Row]:
        files = [self._folder / name for name in (_FORMER_NAME, EVALUATIONS_NAME)]
        return [row for file in files if file.exists() for row in rows.read_rows(file)]
