"""Pretrain a backbone from images without labels: SSQL, or the method that it wraps alone.

KEY VALUE pairs are the config's: DATA.TRAIN names the images, OUTPUT_DIR the folder of the run. Several GPUs:
--num-gpus N, or torchrun --nproc-per-node N tools/pretrain.py --config-file F.
"""

from __future__ import annotations

import argparse

from ssql_det.cli.arguments import add_config_file, add_num_gpus, add_overrides

HELP = "a backbone from images without labels, good at full precision and at few bits"
EXAMPLES = (
    "ssql-det pretrain --config-file mini DATA.TRAIN toy/crops OUTPUT_DIR runs/ssql",
    "ssql-det pretrain --config-file imagenet_r18_ssql --num-gpus 8 --resume DATA.TRAIN photos OUTPUT_DIR runs/photos",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser)
    parser.add_argument("--init", metavar="FILE", help="a backbone to begin with, in any format that convert reads")
    add_num_gpus(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    add_overrides(parser, "OPTIM.LR 0.1")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import set_up_logging
    from ssql_det.core.distributed import launch
    from ssql_det.pretrain.config import check, read_config

    set_up_logging()
    begin_with = ["INIT", options.init] if options.init else []
    pretraining = read_config(options.config_file, [*options.overrides, *begin_with])
    if options.num_gpus > 1:
        check(pretraining, options.num_gpus)  # before processes are started, each of which would say the same
    launch(_pretrain, pretraining, options.resume, processes=options.num_gpus)


def _pretrain(pretraining, resume):  # type: ignore[no-untyped-def]  # the types would import torch
    from ssql_det.core.console import print_outcome, set_up_logging
    from ssql_det.core.distributed import is_main
    from ssql_det.pretrain.loop import pretrain
    from ssql_det.ssl.augmentations import SIZES

    set_up_logging()
    path = pretrain(pretraining, resume)
    if is_main():
        name, size = pretraining.data.views.name, pretraining.data.views.size
        recipe = ("--recipe", name, *(("--size", size) if size != SIZES[name] else ()))
        print_outcome(path, "probe", "knn", "--checkpoint", path, "--data", "LABELLED_IMAGES", *recipe)
