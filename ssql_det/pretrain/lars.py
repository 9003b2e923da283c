"""LARS (You, Gitman, Ginsburg, *Large Batch Training of Convolutional Networks*, 2017): SGD in which each layer moves
by a share of its own size, however small or large its gradient is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

TRUST = 0.001  # the paper's eta


class LARS(torch.optim.Optimizer):
    """Momentum as torch's SGD has it: the rate multiplies the velocity, not what enters it.

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
