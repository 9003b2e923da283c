"""Evaluation while a detector trains, at full precision and at few bits; each look leaves its rows beside the run."""

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
from ssql_det.detect.evaluation_data import CachedLoader, build_evaluation_loader
from ssql_det.detect.quantized_evaluation import (
    EvaluatedDetector,
    EvaluationContext,
    QuantizationSettings,
    evaluate_quantized,
    make_row,
    prepare_evaluation,
)
from ssql_det.quant import Calibration, Scheme, parse_widths

EVALUATIONS_NAME = "looks.jsonl"


class PeriodicEvaluation:
    """Looks every ``SSQL_DET.EVAL_PERIOD`` iterations, or Detectron2's ``TEST.EVAL_PERIOD``, and after the last one.

    Without a period it never looks.

    >>> watch = PeriodicEvaluation(cfg, "voc_r18_c4.yaml", checkpoint.metadata, "resnet18")
    >>> if watch.is_due(iteration, last):
    ...     scalars = watch.look(model, iteration)
    """

    def __init__(self, cfg: CfgNode, config_label: str, facts: Metadata, network: str) -> None:
        self._cfg, self._config_label, self._facts, self._network = cfg, config_label, facts, network
        self._period = cfg.SSQL_DET.EVAL_PERIOD or cfg.TEST.EVAL_PERIOD
        self._widths = parse_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS)))
        self._plan = QuantizationSettings(
            cfg.SSQL_DET.SCOPE, Calibration(cfg.SSQL_DET.CALIB_IMAGES), Scheme.parse(cfg.SSQL_DET.SCHEME)
        )
        if self._period > 0 and world_size() > cfg.SSQL_DET.CALIB_IMAGES:
            raise UserError(
                f"calibration needs at least 1 image a process, of {world_size()}; got SSQL_DET.CALIB_IMAGES "
                f"{cfg.SSQL_DET.CALIB_IMAGES}"
            )
        self._images: dict[str, CachedLoader] = {}

    def is_due(self, iteration: int, last: int) -> bool:
        return self._period > 0 and ((iteration + 1) % self._period == 0 or iteration == last)

    def look(self, model: nn.Module, iteration: int) -> dict[str, float]:
        """Rows for every width and test set; their metrics, by ``dataset/bits/metric``. Generators stay as they are.

        What a run that was killed saw after its last checkpoint is there already, and is not looked at again.
        """
        path, place = Path(self._cfg.OUTPUT_DIR) / EVALUATIONS_NAME, f"iteration {iteration}"
        there = broadcast_from_main(lambda: rows.read_rows(path) if path.exists() else [])
        seen = {(row.checkpoint, row.dataset, row.bits): row for row in there}
        origin = EvaluatedDetector(place, self._facts, self._network)
        generators = RngState.capture()
        scalars: dict[str, float] = {}
        for dataset in self._cfg.DATASETS.TEST:
            name = shorten_dataset_name(dataset)
            images = self._images.setdefault(dataset, build_evaluation_loader(self._cfg, dataset))
            context: EvaluationContext | None = None
            for bits in self._widths:
                row = seen.get((place, name, str(bits)))
                if row is None:
                    context = context or prepare_evaluation(self._cfg, model, self._plan, dataset, images)
                    row = make_row(context, self._config_label, bits, evaluate_quantized(context, bits), origin)
                    if is_main():
                        rows.append_row(path, row)
                scalars |= {
                    f"{name}/{bits}/{metric}": math.nan if value is None else value
                    for metric, value in row.metrics.items()
                    if "/" in metric  # what an evaluator said, not the costs
                }
        generators.restore()
        return scalars
