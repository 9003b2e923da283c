"""Pretrain a backbone on images without labels, by SSQL or by one of its base methods alone.

KEY VALUE pairs override the config: DATA.TRAIN names the images, OUTPUT_DIR the folder of the run. Several GPUs:
--num-gpus N, or torchrun --nproc-per-node N tools/pretrain.py --config-file F.
"""

from __future__ import annotations

import argparse

from ssql_det.cli.arguments import add_config_file, add_num_gpus, add_overrides, check_config_is_kept

HELP = "pretrain a backbone on images without labels, for full precision and low bit-widths"
EXAMPLES = (
    "ssql-det pretrain --config-file mini DATA.TRAIN toy/crops OUTPUT_DIR runs/ssql",
    "ssql-det pretrain --config-file imagenet_r18_ssql --num-gpus 8 --resume DATA.TRAIN photos OUTPUT_DIR runs/photos",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser, "pretrain")
    parser.add_argument("--init", metavar="FILE", help="a checkpoint to start from, in any format that convert reads")
    add_num_gpus(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    add_overrides(parser, "OPTIM.LR 0.1")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import set_up_logging
    from ssql_det.core.launch import launch
    from ssql_det.pretrain.checkpoint import CHECKPOINT_NAME
    from ssql_det.pretrain.config import check_config, read_config
    from ssql_det.pretrain.schedule import fit_schedule

    set_up_logging()
    init = ["INIT", options.init] if options.init else []
    config = read_config(options.config_file, [*options.overrides, *init])
    check_config_is_kept(options.config_file, config.output_dir, options.resume, CHECKPOINT_NAME)
    check_config(config, options.num_gpus)  # before the processes start, so that the error appears once
    config = fit_schedule(config)
    launch(_pretrain, config, options.resume, processes=options.num_gpus)


def _pretrain(config, resume):  # type: ignore[no-untyped-def]  # the types would import torch
    from ssql_det.core.config import check_output_dir
    from ssql_det.core.console import print_outcome, set_up_logging
    from ssql_det.core.distributed import is_main
    from ssql_det.core.run_folder import owning_folder
    from ssql_det.pretrain.loop import pretrain
    from ssql_det.ssl.augmentations import SIZES

    set_up_logging()
    with owning_folder(check_output_dir(config.output_dir)):
        path = pretrain(config, resume)
    if is_main():
        name, size = config.data.augmentation.name, config.data.augmentation.size
        recipe = ("--recipe", name, *(("--size", size) if size != SIZES[name] else ()))
        print_outcome(path, "probe", "knn", "--checkpoint", path, "--data", "LABELLED_IMAGES", *recipe)
