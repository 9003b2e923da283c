"""What a config may not say: it would end in a traceback, or never, or in a backbone that is worth nothing."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from ssql_det.core.config import require_least
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import world_size

_LEAST = {
    **dict.fromkeys(("DIM", "HIDDEN", "OPTIM.BATCH", "OPTIM.EPOCHS", "PERIODS.LOG", "PERIODS.CHECKPOINT"), 1),
    **dict.fromkeys(("DATA.WORKERS", "DATA.SIZE", "DATA.CACHE_MB", "DATA.MOST_BAD_IMAGES", "MONITOR.PERIOD"), 0),
    **dict.fromkeys(("OPTIM.LR", "OPTIM.MOMENTUM", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_EPOCHS", "QUEUE", "SEED"), 0),
    "MONITOR.IMAGES": 2,
}


def check(cfg: CfgNode, processes: int | None = None) -> None:
    """Refuse in one sentence, before anything is read or written; so many ``processes`` are there, or will be."""
    world = world_size() if processes is None else processes
    require_least(cfg, _LEAST)
    if cfg.OPTIM.MOMENTUM >= 1:
        raise UserError(f"OPTIM.MOMENTUM must be less than 1, got {cfg.OPTIM.MOMENTUM}")
    if cfg.SEED >= 1 << 32:
        raise UserError(f"SEED must be less than 2**32, got {cfg.SEED}")
    if not 0 <= cfg.MOMENTUM <= 1:
        raise UserError(f"MOMENTUM is that of a moving average, 0 to 1; got {cfg.MOMENTUM}")
    if not cfg.TEMPERATURE > 0:
        raise UserError(f"TEMPERATURE must be more than 0, got {cfg.TEMPERATURE}")
    if cfg.METHOD == "moco" and cfg.QUEUE < cfg.OPTIM.BATCH:
        raise UserError(f"QUEUE {cfg.QUEUE} is less than a batch of OPTIM.BATCH {cfg.OPTIM.BATCH} keys; make it more")
    if not cfg.DATA.TRAIN:
        raise UserError("DATA.TRAIN is empty; say which images: DATA.TRAIN FOLDER")
    if 2 * world > cfg.OPTIM.BATCH:
        raise UserError(f"OPTIM.BATCH {cfg.OPTIM.BATCH} is too small: a BatchNorm needs two images a process")
    if cfg.OPTIM.BATCH % world:
        raise UserError(f"OPTIM.BATCH {cfg.OPTIM.BATCH} cannot be shared by {world} processes; make it a multiple")
    if world > 1 and torch.cuda.is_available() and cfg.DEVICE != "cuda":
        raise UserError(f"several processes have a GPU each: DEVICE is cuda for them, got {cfg.DEVICE!r}")
