"""Learning rate schedules: fvcore's functions of the training progress, as torch schedulers."""

from __future__ import annotations

from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "LRScheduler", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """``scheduler`` whose first ``warmup_length`` (a fraction of training) is replaced by a warm-up.

    The warm-up starts at ``warmup_factor`` times the first value and is "linear" or "constant". After it ``scheduler``
    has the value of that progress; with ``rescale_interval`` it starts only then and is compressed into the rest.

    >>> from fvcore.common.param_scheduler import CosineParamScheduler
    >>> schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), warmup_factor=0.001, warmup_length=0.1)
    >>> f"{schedule(0.05):.4f}"
    '0.4883'
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        start = warmup_factor * scheduler(0.0)
        end = scheduler(0.0 if rescale_interval else warmup_length)
        if warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        elif warmup_method == "linear":
            warmup = LinearParamScheduler(start, end)
        else:
            raise ValueError(f"Unknown warmup method: {warmup_method!r}; it is 'linear' or 'constant'")
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Multiplies each group's initial learning rate by ``multiplier`` at the progress ``iteration / max_iter``.

    torch's epoch is an iteration here. The state does not contain the schedule, so it can be changed when resuming.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be a ParamScheduler of fvcore, got {multiplier}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[Any]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]
