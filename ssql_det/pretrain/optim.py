"""The optimizer, and a learning rate that is a function of progress alone: a resumed run needs no state of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import nn

from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.pretrain.lars import LARS

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "lars": LARS}


def build_optimizer(cfg: CfgNode, network: nn.Module) -> torch.optim.Optimizer:
    """Over all that is trained, with weight decay on all of it, as published, but that LARS spares biases and norms."""
    node = cfg.OPTIM
    if node.NAME not in _OPTIMIZERS:
        known = ", ".join(_OPTIMIZERS)
        raise UserError(f"OPTIM.NAME {node.NAME!r} is not here{did_you_mean(node.NAME, _OPTIMIZERS)} (known: {known})")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return _OPTIMIZERS[node.NAME](trained, lr=node.LR, momentum=node.MOMENTUM, weight_decay=node.WEIGHT_DECAY)


def learning_rate(cfg: CfgNode, step: int, steps_per_epoch: int) -> float:
    """A linear warm-up, then half a cosine to 0; in steps, or as published in whole epochs.

    >>> [learning_rate(cfg, step, steps_per_epoch=10) for step in (0, 9, 500)]  # LR 0.05, 100 epochs
    [0.05, 0.05, 0.025]
    """
    node = cfg.OPTIM
    if step < node.WARMUP_EPOCHS * steps_per_epoch:
        return float(node.LR * min((step + 1) / (node.WARMUP_EPOCHS * steps_per_epoch), 1))
    epoch = step // steps_per_epoch if node.PER_EPOCH else step / steps_per_epoch
    progress = max(epoch - node.WARMUP_EPOCHS, 0) / max(node.EPOCHS - node.WARMUP_EPOCHS, 1e-9)
    return float(node.LR * (1 + math.cos(math.pi * progress)) / 2)
