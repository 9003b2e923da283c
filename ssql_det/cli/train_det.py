"""Train a detector from a pretrained backbone.

KEY VALUE pairs override the config, as in Detectron2: MODEL.WEIGHTS is the backbone, in any format that `ssql-det
convert` reads, OUTPUT_DIR the folder of the run. --init begins with a detector instead, such as one that was trained in
float, to train it further at low bit-widths. Several GPUs: --num-gpus N, or torchrun --nproc-per-node N
tools/train_net.py --config-file FILE. Custom data: --coco-train IMAGES:FILE.json --coco-val IMAGES:FILE.json.
"""

from __future__ import annotations

import argparse

from ssql_det.cli.arguments import (
    add_config_arguments,
    add_num_gpus,
    add_overrides,
    check_config_is_kept,
    read_detector_config,
    set_up_process,
)

HELP = "Faster or Mask R-CNN from a pretrained backbone"
EXAMPLES = (
    "ssql-det train-det --config-file toy_voc_narrow_c4 MODEL.WEIGHTS runs/ssql/checkpoint.pth OUTPUT_DIR runs/c4",
    "ssql-det train-det --config-file toy_voc_narrow_c4_anyprecision --init c4/model_final.pth OUTPUT_DIR runs/any",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--init", metavar="DETECTOR", help="fine-tune this detector, heads included, for a tenth of the schedule"
    )
    add_num_gpus(parser)
    parser.add_argument("--resume", action="store_true", help="resume the run in OUTPUT_DIR")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, a trained detector, at full precision"
    )
    add_overrides(parser, "SOLVER.BASE_LR 0.01")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.launch import launch
    from ssql_det.detect import make_config_label
    from ssql_det.detect.schedule import fit_schedule
    from ssql_det.detect.training_checkpoint import LAST_CHECKPOINT_NAME

    overrides = [*_make_fine_tuning_overrides(options), *options.overrides]
    cfg = read_detector_config(options, overrides)
    if options.eval_only:
        launch(_evaluate, cfg, processes=options.num_gpus)
        return
    cfg = fit_schedule(cfg)
    check_config_is_kept(options.config_file, cfg.OUTPUT_DIR, options.resume, LAST_CHECKPOINT_NAME)
    config_label = make_config_label(options.config_file, overrides)
    launch(_train, cfg, config_label, options.resume, processes=options.num_gpus)


def _make_fine_tuning_overrides(options: argparse.Namespace) -> list[str]:
    """The KEY VALUE pairs that ``--init`` stands for."""
    if options.init is None:
        return []
    cfg = read_detector_config(options, ["MODEL.DEVICE", "cpu"])
    solver = cfg.SOLVER
    pairs = {
        "MODEL.WEIGHTS": options.init,
        "SSQL_DET.LOAD_HEADS": True,
        "SOLVER.MAX_ITER": max(solver.MAX_ITER // 10, 1),
        "SOLVER.STEPS": tuple(step // 10 for step in solver.STEPS),
        "SOLVER.WARMUP_ITERS": solver.WARMUP_ITERS // 10,
    }
    if cfg.SSQL_DET.EPOCHS:
        pairs["SSQL_DET.EPOCHS"] = max(cfg.SSQL_DET.EPOCHS // 10, 1)
    return [str(each) for pair in pairs.items() for each in pair]


def _train(cfg, config_label, resume):  # type: ignore[no-untyped-def]  # the types would import torch
    from ssql_det.core.config import SAVED_CONFIG_NAME, check_output_dir
    from ssql_det.core.console import print_outcome
    from ssql_det.core.distributed import is_main
    from ssql_det.core.run_folder import owning_folder
    from ssql_det.detect.train import train
    from ssql_det.quant.training import QUANTIZATION_NAME

    set_up_process()
    with owning_folder(check_output_dir(cfg.OUTPUT_DIR)):
        path = train(cfg, config_label, resume)
    if is_main():
        quantization = path.with_name(QUANTIZATION_NAME)
        trained = ("--quantization", quantization) if quantization.exists() else ()
        config = path.with_name(SAVED_CONFIG_NAME)
        print_outcome(path, "sweep", "--config-file", config, *trained, "MODEL.WEIGHTS", path)


def _evaluate(cfg):  # type: ignore[no-untyped-def]
    """Print the metrics on each test set, at full precision."""
    from ssql_det.core.console import print_table
    from ssql_det.core.distributed import is_main
    from ssql_det.core.errors import UserError
    from ssql_det.core.rows import format_metric
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.evaluation import evaluate
    from ssql_det.detect.evaluation_data import build_evaluation_loader

    set_up_process()
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name a data set to evaluate on")
    model, checkpoint = load_trained_detector(cfg)
    for dataset in cfg.DATASETS.TEST:
        metrics = evaluate(model, build_evaluation_loader(cfg, dataset), dataset)
        if is_main():
            rows = [(name, format_metric(value)) for name, value in metrics.items()]
            print_table(("metric", dataset), rows, checkpoint.display_name)
