"""Pretrainings of a few steps on crops, for tests: their config, and what is in a checkpoint."""

from pathlib import Path

import torch

import ssql_det
from ssql_det.pretrain.config import read_config

MINI = Path(ssql_det.__file__).parents[1] / "configs" / "pretrain" / "mini.yaml"
TINY = {
    "DATA.SIZE": 16,
    "OPTIM.BATCH": 24,  # of 48 crops
    "OPTIM.EPOCHS": 3,
    "OPTIM.LR": 0.02,
    "OPTIM.WARMUP_EPOCHS": 1.0,
    "DEVICE": "cpu",
    "MONITOR.PERIOD": 0,
    "PERIODS.LOG": 1,
    "SEED": 5,
}


def keys(toy, out, **more):
    """KEY VALUE pairs of a tiny run of ``METHOD``; ``OPTIM__LR=0.1`` is ``OPTIM.LR 0.1``."""
    node = more.get("METHOD", "simsiam").upper()
    values = TINY | {f"{node}.DIM": 16, f"{node}.HIDDEN": 8, "DATA.TRAIN": toy / "crops", "OUTPUT_DIR": out}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    return [str(each) for pair in values.items() for each in pair]


def config(toy, out, **more):
    return read_config(MINI, keys(toy, out, **more))


class StoppedError(Exception):
    """As a kill, but within this process."""


def content(folder):
    return torch.load(folder / "checkpoint.pth")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
