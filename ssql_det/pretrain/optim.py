"""The optimizer, and a learning rate that is a function of progress alone: a resumed run needs no state of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError, did_you_mean

TRUST = 0.001  # of LARS: the paper's eta


class LARS(torch.optim.Optimizer):
    """SGD in which each layer moves by a share of its own size, however small or large its gradient is (You, Gitman,
    Ginsburg, *Large Batch Training of Convolutional Networks*, 2017).

    Momentum as torch's SGD has it: the rate multiplies the velocity, not what enters it.

    Biases and norms, whatever has one dimension or none, are left out, as is custom: their gradient is taken as it is,
    and nothing decays. With ``vectors`` they are treated as weights are, as in the published linear probe.

    >>> LARS(layer.parameters(), lr=0.8, vectors=True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = TRUST,
        vectors: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "vectors": vectors}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloads
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        step: Tensor = parameter.grad  # type: ignore[assignment]  # it is not None
        if parameter.ndim > 1 or group["vectors"]:
            step = trusted(parameter, step, group["weight_decay"], group["trust"])
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity = state["velocity"].mul_(group["momentum"]).add_(step)
        parameter.sub_(group["lr"] * velocity)


def trusted(weight: Tensor, gradient: Tensor, decay: float, trust: float) -> Tensor:
    """The gradient with its weight decay, scaled by ``trust * |w| / (|g| + decay * |w|)``; by 1 where that is 0 or 0/0.

    >>> trusted(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0]), decay=0.0, trust=0.1)  # |w| 5, |g| 10
    tensor([0.0000, 0.5000])
    """
    size = weight.norm()
    scale = trust * size / (gradient.norm() + decay * size)
    return (gradient + decay * weight) * torch.where((scale > 0) & scale.isfinite(), scale, 1.0)


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "lars": LARS}


@dataclass(frozen=True)
class OptimConfig:
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


def build_optimizer(optim: OptimConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Over all that is trained, with weight decay on all of it, as published, but that LARS spares biases and norms."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return _OPTIMIZERS[optim.name](trained, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)


def learning_rate(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
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
