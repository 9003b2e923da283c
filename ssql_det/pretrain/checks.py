"""What a config may not say: it would end in a traceback, or never, or in a backbone that is worth nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from fvcore.common.config import CfgNode

from ssql_det.core.config import plain_values, require_least
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import world_size

if TYPE_CHECKING:
    from ssql_det.pretrain.config import Pretraining

_LEAST = {
    **dict.fromkeys(("OPTIM.BATCH", "OPTIM.EPOCHS", "PERIODS.LOG", "PERIODS.CHECKPOINT"), 1),
    **dict.fromkeys(("DATA.WORKERS", "DATA.SIZE", "DATA.CACHE_MB", "DATA.MOST_BAD_IMAGES", "MONITOR.PERIOD"), 0),
    **dict.fromkeys(("OPTIM.LR", "OPTIM.MOMENTUM", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_EPOCHS", "SEED"), 0),
    "MONITOR.IMAGES": 2,
}


def check_values(cfg: CfgNode) -> None:
    """Refuse in one sentence what no run can be made of; what a method cannot take it refuses itself."""
    numbers = [key for key, value in plain_values(cfg).items() if isinstance(value, (int, float))]
    require_least(cfg, dict.fromkeys(numbers, -math.inf) | _LEAST)
    if cfg.OPTIM.MOMENTUM >= 1:
        raise UserError(f"OPTIM.MOMENTUM must be less than 1, got {cfg.OPTIM.MOMENTUM}")
    if cfg.SEED >= 1 << 32:
        raise UserError(f"SEED must be less than 2**32, got {cfg.SEED}")


def check(pretraining: Pretraining, processes: int | None = None) -> None:
    """Refuse in one sentence, before anything is read or written; so many ``processes`` are there, or will be."""
    world, batch = world_size() if processes is None else processes, pretraining.optim.batch
    if not pretraining.data.train:
        raise UserError("DATA.TRAIN is empty; say which images: DATA.TRAIN FOLDER")
    if 2 * world > batch:
        raise UserError(f"OPTIM.BATCH {batch} is too small: a BatchNorm needs two images a process")
    if batch % world:
        raise UserError(f"OPTIM.BATCH {batch} cannot be shared by {world} processes; make it a multiple")
    if world > 1 and torch.cuda.is_available() and pretraining.device != "cuda":
        raise UserError(f"several processes have a GPU each: DEVICE is cuda for them, got {pretraining.device!r}")
