"""Loading an optimizer's state from a checkpoint, with the checks that torch leaves out, in the parameters' layout.

``Optimizer.load_state_dict`` only compares the number of parameters; any other mismatch would fail in the next step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

STATE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the loading of a damaged state raises, of an optimizer, a module or a random generator."""


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load ``state``; raise a ``ValueError``, or what torch raises, if the optimizer could not take a step with it.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    >>> load_optimizer_state(optimizer, optimizer.state_dict() | {"state": {0: {"momentum_buffer": torch.zeros(3)}}})
    Traceback (most recent call last):
    ValueError: its optimizer state has a momentum_buffer that does not fit a parameter of shape [2]
    """
    number_names = [
        {name for name, value in group.items() if type(value) in (int, float)} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, names in zip(optimizer.param_groups, number_names, strict=True):
        for name in names:
            if type(group.get(name)) not in (int, float) or not math.isfinite(group[name]):
                raise ValueError(f"its optimizer state has no number for {name}")
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if value is not None and not _fits(value, parameter):
                    shape = list(parameter.shape)
                    raise ValueError(f"its optimizer state has a {name} that does not fit a parameter of shape {shape}")
                if isinstance(value, Tensor):  # files are contiguous, but parameters may be in channels last
                    layout = torch.empty_like(parameter, dtype=value.dtype)
                    optimizer.state[parameter][name] = layout.copy_(value)


def _fits(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and bool(value.isfinite().all())
