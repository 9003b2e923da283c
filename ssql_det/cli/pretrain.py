"""Pretrain a backbone from images without labels: SSQL, or the method that it wraps alone.

KEY VALUE pairs are the config's: DATA.TRAIN names the images, OUTPUT_DIR the folder of the run. Several GPUs:
--num-gpus N, or torchrun --nproc-per-node N tools/pretrain.py --config-file F.
"""

from __future__ import annotations

import argparse

from ssql_det.cli.numbers import positive

HELP = "a backbone from images without labels, good at full precision and at few bits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", metavar="FILE", required=True, help="what to train, and how")
    parser.add_argument("--init", metavar="FILE", help="a backbone to begin with, in any format that convert reads")
    parser.add_argument("--num-gpus", type=positive, default=1, help="or processes, without one (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    parser.add_argument("overrides", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="as OPTIM.LR 0.1")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import set_up_logging
    from ssql_det.core.ranks import launch
    from ssql_det.pretrain.checks import check
    from ssql_det.pretrain.config import read_config

    set_up_logging()
    begin_with = ["INIT", options.init] if options.init else []
    cfg = read_config(options.config_file, [*options.overrides, *begin_with])
    if options.num_gpus > 1:
        check(cfg, options.num_gpus)  # before processes are started, each of which would say the same
    launch(_pretrain, cfg, options.resume, processes=options.num_gpus)


def _pretrain(cfg, resume):  # type: ignore[no-untyped-def]  # the types would import torch
    from ssql_det.core.console import set_up_logging
    from ssql_det.core.ranks import is_main
    from ssql_det.pretrain.loop import pretrain

    set_up_logging()
    path = pretrain(cfg, resume)
    if is_main():
        shown = f"--recipe {cfg.DATA.RECIPE}{f' --size {cfg.DATA.SIZE}' if cfg.DATA.SIZE else ''}"
        print(f"pretrained: {path}; with labels: ssql-det probe knn --checkpoint {path} --data LABELLED {shown}")
