"""An optimizer's state out of a file. Torch asks how many parameters it is of; what else is wrong would end a step."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state; a ``ValueError``, or what torch raises, where no step could be made with it.

    >>> load_optimizer_state(optimizer, content["optimizer"])
    ValueError: its optimizer has a momentum_buffer that does not fit a parameter of shape [64, 3, 7, 7]
    """
    numbers = [
        {name for name, value in group.items() if type(value) in (int, float)} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, names in zip(optimizer.param_groups, numbers, strict=True):
        for name in names:
            if type(group.get(name)) not in (int, float) or not math.isfinite(group[name]):
                raise ValueError(f"its optimizer has no number for {name}")
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if value is not None and not _fits(value, parameter):
                    shape = list(parameter.shape)
                    raise ValueError(f"its optimizer has a {name} that does not fit a parameter of shape {shape}")


def _fits(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and bool(value.isfinite().all())
