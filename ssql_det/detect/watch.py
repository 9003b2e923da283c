"""Evaluation while a detector trains, at full precision and at few bits; each look leaves its rows beside the run."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from ssql_det.convert import Facts
from ssql_det.core import rows
from ssql_det.core.choices import RngState
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import from_main, is_main, world_size
from ssql_det.d2 import CfgNode
from ssql_det.detect.data import Decoded, evaluation_images, row_name
from ssql_det.detect.measure import EvaluationContext, Origin, Plan, make_row, measure, prepare
from ssql_det.quant import Calibration, Scheme, parse_widths

LOOKS_NAME = "looks.jsonl"


class Watch:
    """Looks every ``SSQL_DET.EVAL_PERIOD`` iterations, or Detectron2's ``TEST.EVAL_PERIOD``, and after the last one.

    Without a period it never looks.

    >>> watch = Watch(cfg, "voc_r18_c4.yaml", checkpoint.facts, "resnet18")
    >>> if watch.is_due(iteration, last):
    ...     scalars = watch.look(model, iteration)
    """

    def __init__(self, cfg: CfgNode, config_name: str, facts: Facts, network: str) -> None:
        self._cfg, self._config_name, self._facts, self._network = cfg, config_name, facts, network
        self._period = cfg.SSQL_DET.EVAL_PERIOD or cfg.TEST.EVAL_PERIOD
        self._widths = parse_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS)))
        self._plan = Plan(cfg.SSQL_DET.SCOPE, Calibration(cfg.SSQL_DET.CALIB_IMAGES), Scheme.parse(cfg.SSQL_DET.SCHEME))
        if self._period > 0 and world_size() > cfg.SSQL_DET.CALIB_IMAGES:
            raise UserError(
                f"calibration needs at least 1 image a process, of {world_size()}; got SSQL_DET.CALIB_IMAGES "
                f"{cfg.SSQL_DET.CALIB_IMAGES}"
            )
        self._images: dict[str, Decoded] = {}

    def is_due(self, iteration: int, last: int) -> bool:
        return self._period > 0 and ((iteration + 1) % self._period == 0 or iteration == last)

    def look(self, model: nn.Module, iteration: int) -> dict[str, float]:
        """Rows for every width and test set; their metrics, by ``dataset/bits/metric``. Generators stay as they are.

        What a run that was killed saw after its last checkpoint is there already, and is not looked at again.
        """
        path, place = Path(self._cfg.OUTPUT_DIR) / LOOKS_NAME, f"iteration {iteration}"
        there = from_main(lambda: rows.read(path) if path.exists() else [])
        seen = {(row.checkpoint, row.dataset, row.bits): row for row in there}
        origin = Origin(place, self._facts, self._network)
        generators = RngState.capture()
        scalars: dict[str, float] = {}
        for dataset in self._cfg.DATASETS.TEST:
            name = row_name(dataset)
            images = self._images.setdefault(dataset, evaluation_images(self._cfg, dataset))
            context: EvaluationContext | None = None
            for bits in self._widths:
                row = seen.get((place, name, str(bits)))
                if row is None:
                    context = context or prepare(self._cfg, model, self._plan, dataset, images)
                    row = make_row(context, self._config_name, bits, measure(context, bits), origin)
                    if is_main():
                        rows.append(path, row)
                scalars |= {
                    f"{name}/{bits}/{metric}": math.nan if value is None else value
                    for metric, value in row.metrics.items()
                    if "/" in metric  # what an evaluator said, not the costs
                }
        generators.restore()
        return scalars
