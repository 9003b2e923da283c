"""The optimizer, and the learning rate as a function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim.lars import Lars
from torch import nn

from ssql_det.core.errors import UserError, did_you_mean

_OPTIMIZERS = ("sgd", "lars")


@dataclass(frozen=True)
class OptimConfig:
    """The config node ``OPTIM``: the optimizer and its schedule."""

    name: str
    batch: int  # over all processes
    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    per_epoch: bool  # after the warm-up, update LR once per epoch; False: at each step
    ranks: int = 0  # of the recipe, see ``ranks``; 0: as many as there are processes
    least_steps: int = 0  # above 0: the batch and the epochs follow the number of images, see ``schedule``

    def __post_init__(self) -> None:
        if self.name not in _OPTIMIZERS:
            suggestion, known = did_you_mean(self.name, _OPTIMIZERS), ", ".join(_OPTIMIZERS)
            raise UserError(f"OPTIM.NAME {self.name!r} is unknown{suggestion} (known: {known})")


def build_optimizer(
    optim: OptimConfig,
    network: nn.Module,
    more_groups: Iterable[dict[str, Any]] = (),
    at_fixed_lr: Iterable[nn.Module] = (),
) -> torch.optim.Optimizer:
    """SGD applies weight decay to all parameters, as published. LARS excludes biases and norms from weight decay and
    from its scaling, as is usual.

    ``more_groups`` are parameter groups beside those of the network. Groups of the modules ``at_fixed_lr`` have
    ``has_fixed_lr``, see :func:`set_learning_rate`.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fixed = {id(parameter) for module in at_fixed_lr for parameter in module.parameters()}
    groups = _make_groups(optim, [each for each in trained if id(each) not in fixed])
    if fixed:
        own = _make_groups(optim, [each for each in trained if id(each) in fixed])
        groups += [{**group, "has_fixed_lr": True} for group in own]
    groups += more_groups
    if optim.name == "sgd":
        # Not fused: with a gradient in another memory format than its weight, torch's fused SGD computes wrong updates.
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    return Lars(groups, lr=optim.lr, momentum=optim.momentum, eps=0.0)


def _make_groups(optim: OptimConfig, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    if optim.name == "sgd":
        return [{"params": parameters}]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    biases_and_norms = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [
        {"params": weights, "weight_decay": optim.weight_decay, "always_adapt": True},
        {"params": biases_and_norms, "weight_decay": 0.0},
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, optim: OptimConfig, lr: float) -> None:
    """Set the rate of a step: times ``lr_factor`` where a group has one; the first rate where it has a fixed one."""
    for group in optimizer.param_groups:
        group["lr"] = optim.lr if group.get("has_fixed_lr") else lr * group.get("lr_factor", 1.0)


def learning_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """A linear warm-up, updated at each step, then a half cosine to 0, updated at each step or, with ``per_epoch``,
    once per epoch. ``step`` counts from 0 over all epochs.

    >>> solver = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
    >>> optim = OptimConfig("sgd", batch=256, epochs=100, **solver, warmup_epochs=0.0, per_epoch=True)
    >>> [learning_rate(optim, step, steps_per_epoch=10) for step in (0, 9, 500)]
    [0.05, 0.05, 0.025]
    """
    warmup = optim.warmup_epochs
    if step < warmup * steps_per_epoch:
        return optim.lr * min((step + 1) / (warmup * steps_per_epoch), 1)
    epoch = step // steps_per_epoch if optim.per_epoch else step / steps_per_epoch
    progress = max(epoch - warmup, 0) / max(optim.epochs - warmup, 1e-9)
    return optim.lr * (1 + math.cos(math.pi * progress)) / 2
