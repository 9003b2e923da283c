"""What a network has in its state, and what one that is built by name would have: compared before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ssql_det.backbones.build import build_backbone
from ssql_det.core.choices import choices_of

NO_TENSOR = "no plain tensor"


def state_of(entries: Mapping[Any, Any]) -> dict[str, str]:
    """
    >>> state_of(nn.Linear(2, 1).state_dict())
    {'weight': 'float32 [1, 2]', 'bias': 'float32 [1]'}
    """
    return {str(name): _kind(value) for name, value in entries.items()}


def expected_state(name: str) -> dict[str, str]:
    """That of a network which is built by name; without memory, where its code allows it."""
    with choices_of(name):  # the generators outside do not move
        try:
            with torch.device("meta"):
                return state_of(build_backbone(name).module.state_dict())
        except Exception:  # code that looks at values fails there, in any way
            return state_of(build_backbone(name).module.state_dict())


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Why the one state is not the other, a reason for each entry that is at fault."""
    kinds = {name: found.get(name, "missing") for name in wanted}
    wrong = [f"{name} is {kind}, not {wanted[name]}" for name, kind in kinds.items() if kind != wanted[name]]
    return wrong + [f"{name} has no place" for name in found if name not in wanted]


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor) or is_lazy(value):
        return NO_TENSOR
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
