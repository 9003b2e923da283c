"""Arguments, set-up (logger, seed, saved config) and event writers of a training program."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import CfgNode
from ..utils import comm
from ..utils.collect_env import collect_env_info
from ..utils.env import seed_all_rng
from ..utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from ..utils.file_io import PathManager
from ..utils.logger import setup_logger

__all__ = ["create_ddp_model", "default_argument_parser", "default_setup", "default_writers"]


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The argument parser of a training program.

    >>> default_argument_parser().parse_args(["--num-gpus", "8", "--config-file", "a.yaml", "SEED", "1"]).opts
    ['SEED', '1']
    """
    program = sys.argv[0]
    examples = f"""
Examples:

On all GPUs of one machine:
    $ {program} --num-gpus 8 --config-file cfg.yaml

With overrides of the config file:
    $ {program} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weight.pth SOLVER.BASE_LR 0.001

On several machines:
    (machine0)$ {program} --machine-rank 0 --num-machines 2 --dist-url <URL> [--other-flags]
    (machine1)$ {program} --machine-rank 1 --num-machines 2 --dist-url <URL> [--other-flags]
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="path to config file")
    add("--resume", action="store_true", help="resume from the last checkpoint in the output folder, if there is one")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    add("--num-machines", type=int, default=1, help="total number of machines")
    add("--machine-rank", type=int, default=0, help="this machine's number, from 0")
    # A fixed port for each user, so that a process left from an earlier run is noticed.
    user = os.getuid() if sys.platform != "win32" else 1
    port = 2**15 + 2**14 + user % 2**14
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", help="the URL to initialize torch.distributed")
    add("opts", default=None, nargs=argparse.REMAINDER, help='config values, as "PATH.KEY VALUE" pairs')
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up loggers, seed, cuDNN and TF32; write ``OUTPUT_DIR/config.yaml``.

    A rank's seed is ``SEED`` plus the rank; with a negative ``SEED`` it is random.
    """
    rank = comm.get_rank()
    writes = comm.is_main_process() and bool(cfg.OUTPUT_DIR)
    if writes:
        PathManager.mkdirs(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR or None, distributed_rank=rank, name="fvcore")
    logger = setup_logger(cfg.OUTPUT_DIR or None, distributed_rank=rank)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info(f"Environment info:\n{collect_env_info()}")
    logger.info(f"Command line arguments: {args}")
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, encoding="utf-8") as file:
            logger.info(f"Contents of args.config_file={config_file}:\n{file.read()}")
    if writes:
        text, path = cfg.dump(), os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        logger.info(f"Running with full config:\n{text}")
        with PathManager.open(path, "w", encoding="utf-8") as file:
            file.write(text)
        logger.info(f"Full config saved to {path}")

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):  # benchmarking algorithms costs more than an evaluation gains
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        _set_float32_precision(cfg.FLOAT32_PRECISION, logger)


def _set_float32_precision(precision: str, logger: logging.Logger) -> None:
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"
    logger.info(f"FLOAT32_PRECISION {precision!r}: matmul at {torch.get_float32_matmul_precision()!r}")


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the log, to ``metrics.json`` and to TensorBoard."""
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap the model in DDP if there are several processes; on the CPU pass ``device_ids=None``."""
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp
