"""Evaluation while a detector trains, at full precision and at few bits; each look leaves its rows beside the run."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from ssql_det.core import rows
from ssql_det.core.resume import RngState
from ssql_det.d2 import CfgNode
from ssql_det.detect.data import Decoded, evaluation_images
from ssql_det.detect.measure import Plan, make_row, measure, parse_widths, prepare

LOOKS_NAME = "looks.jsonl"
_logger = logging.getLogger(__name__)


class Watch:
    """Looks every ``SSQL.EVAL_PERIOD`` iterations, and after the last where there is a period at all.

    >>> watch = Watch(cfg, "voc_r18_c4.yaml")
    >>> if watch.is_due(iteration, last):
    ...     scalars = watch.look(model, iteration)
    """

    def __init__(self, cfg: CfgNode, config_name: str) -> None:
        self._cfg, self._config_name = cfg, config_name
        self._period = cfg.SSQL.EVAL_PERIOD
        self._widths = parse_widths(",".join(map(str, cfg.SSQL.EVAL_BITS)))
        self._plan = Plan(cfg.SSQL.SCOPE, cfg.SSQL.CALIB_IMAGES)
        self._images: dict[str, Decoded] = {}

    def is_due(self, iteration: int, last: int) -> bool:
        return self._period > 0 and ((iteration + 1) % self._period == 0 or iteration == last)

    def look(self, model: nn.Module, iteration: int) -> dict[str, float]:
        """Rows for every width and test set; their metrics, by ``dataset/bits/metric``. Generators stay as they are."""
        generators = RngState.capture()
        scalars: dict[str, float] = {}
        for dataset in self._cfg.DATASETS.TEST:
            images = self._images.setdefault(dataset, evaluation_images(self._cfg, dataset))
            tools = prepare(self._cfg, model, self._plan, images)
            for bits in self._widths:
                metrics, seconds = measure(model, tools, bits, self._plan, images, dataset)
                row = make_row(
                    self._cfg, self._config_name, dataset, bits, self._plan, metrics, seconds, f"iteration {iteration}"
                )
                rows.append(Path(self._cfg.OUTPUT_DIR) / LOOKS_NAME, row)
                scalars |= {f"{dataset}/{bits}/{name}": value for name, value in metrics.items() if "/" in name}
        generators.restore()
        return scalars
