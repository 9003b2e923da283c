"""Train a detector from a pretrained backbone, in Detectron2's grammar.

KEY VALUE pairs are Detectron2's: MODEL.WEIGHTS names the backbone, in any format that `ssql-det convert` reads,
OUTPUT_DIR the folder of the run.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ssql_det.cli.numbers import positive

if TYPE_CHECKING:
    from ssql_det.d2 import CfgNode

HELP = "Faster or Mask R-CNN from a pretrained backbone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", metavar="FILE", required=True, help="the detector's config")
    parser.add_argument("--num-gpus", type=positive, default=1, help="only 1 so far")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, a whole detector, in float")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="as SOLVER.BASE_LR 0.01")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.errors import UserError
    from ssql_det.d2 import read_config, set_up_logging
    from ssql_det.detect import SSQL_DEFAULTS, config_name
    from ssql_det.detect.train import train

    if options.num_gpus != 1:
        raise UserError(f"training runs in one process so far, got --num-gpus {options.num_gpus}; leave it out")
    set_up_logging()
    cfg = read_config(options.config_file, options.overrides, SSQL_DEFAULTS)
    if options.eval_only:
        _evaluate(cfg)
        return
    path = train(cfg, config_name(options.config_file, options.overrides), options.resume)
    print(f"trained: {path}; at few bits: ssql-det sweep --config-file {options.config_file} MODEL.WEIGHTS {path}")


def _evaluate(cfg: CfgNode) -> None:
    """The metrics of each test set, in float."""
    import tempfile

    from ssql_det.core.console import print_table
    from ssql_det.detect.data import evaluation_images
    from ssql_det.detect.evaluate import evaluate
    from ssql_det.detect.weights import trained_detector

    model, checkpoint = trained_detector(cfg)
    for dataset in cfg.DATASETS.TEST:
        with tempfile.TemporaryDirectory() as scratch:
            metrics = evaluate(model, evaluation_images(cfg, dataset), dataset, scratch)
        rows = [(name, f"{value:.2f}") for name, value in metrics.items()]
        print_table(("metric", dataset), rows, checkpoint.called)
