"""The optimizer, and a learning rate that is a function of progress alone: a resumed run needs no state of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.pretrain.lars import LARS

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "lars": LARS}


@dataclass(frozen=True)
class Optimization:
    """The keys of ``OPTIM``: the optimizer, and how long it goes at which rate."""

    name: str
    batch: int  # over all processes
    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    per_epoch: bool

    def __post_init__(self) -> None:
        if self.name not in _OPTIMIZERS:
            near, known = did_you_mean(self.name, _OPTIMIZERS), ", ".join(_OPTIMIZERS)
            raise UserError(f"OPTIM.NAME {self.name!r} is unknown{near} (known: {known})")


def build_optimizer(optim: Optimization, network: nn.Module) -> torch.optim.Optimizer:
    """Over all that is trained, with weight decay on all of it, as published, but that LARS spares biases and norms."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return _OPTIMIZERS[optim.name](trained, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)


def learning_rate(optim: Optimization, step: int, steps_per_epoch: int) -> float:
    """A linear warm-up, then half a cosine to 0; in steps, or as published in whole epochs.

    >>> optim = read_config(None).optim  # LR 0.05, 100 epochs
    >>> [learning_rate(optim, step, steps_per_epoch=10) for step in (0, 9, 500)]
    [0.05, 0.05, 0.025]
    """
    warmup = optim.warmup_epochs
    if step < warmup * steps_per_epoch:
        return optim.lr * min((step + 1) / (warmup * steps_per_epoch), 1)
    epoch = step // steps_per_epoch if optim.per_epoch else step / steps_per_epoch
    progress = max(epoch - warmup, 0) / max(optim.epochs - warmup, 1e-9)
    return optim.lr * (1 + math.cos(math.pi * progress)) / 2
