"""Where in a file's tensors a ResNet stands, and how well an architecture fits what stands there."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ssql_det.convert.architecture import ARCHITECTURES, COUNTER, Architecture, Slot
from ssql_det.convert.names import TORCHVISION, Names, neutral

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_NESTED = (*WRAPPERS, *WRAPPERS)  # one in the other, either way


@dataclass(frozen=True)
class Layout:
    """A rename table under a prefix, in one of these containers ("" is the file itself).

    ``marks`` are patterns; of the names in the state dict, and of the file's own, one fits each.
    ``last_prefix`` is the last stage's, where that is elsewhere: in a C4 detector's head. ``computed`` makes tensors
    that the format does without because they always have the same values.
    """

    prefix: str = ""
    names: Names = TORCHVISION
    containers: tuple[str, ...] = ("", "state_dict", "model", "model_state_dict")
    marks: tuple[str, ...] = ()
    last_prefix: str | None = None
    computed: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = field(default_factory=dict)

    def __call__(self, slot: Slot) -> str | None:
        name = self.names(slot)
        if name is None:
            return None
        return (self.last_prefix if self.last_prefix is not None and slot.stage == 4 else self.prefix) + name

    def is_in(self, state: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
        keys = [*state, *(key for key in content if isinstance(key, str))]
        return self.first in state and all(fnmatch.filter(keys, mark) for mark in self.marks)

    @property
    def first(self) -> str:
        """The name by which the layout is known: the stem's conv."""
        return self.prefix + self.names.stem + self.names.conv_leaves["weight"]


@dataclass(frozen=True)
class Fit:
    """An architecture's places in a layout: tensors that are right, names that lack, tensors that are wrong."""

    architecture: Architecture
    right: Mapping[Slot, str]
    missing: tuple[str, ...]
    wrong: Mapping[str, str]


def fit(architecture: Architecture, layout: Layout, shapes: Mapping[str, Sequence[int]]) -> Fit:
    """
    >>> len(fit(architecture("resnet18"), Layout(), {"conv1.weight": (64, 3, 7, 7)}).missing)
    99
    """
    right: dict[Slot, str] = {}
    missing: list[str] = []
    wrong: dict[str, str] = {}
    for slot in architecture.slots:
        name = layout(slot)
        if name is None:
            continue
        if name not in shapes:
            if slot.leaf != COUNTER:
                missing.append(name)
        elif tuple(shapes[name]) != slot.shape:
            wrong[name] = f"is of shape {list(shapes[name])}, in a {architecture.name} it is {list(slot.shape)}"
        else:
            right[slot] = name
    return Fit(architecture, right, tuple(missing), wrong)


def best_fit(layout: Layout, shapes: Mapping[str, Sequence[int]]) -> Fit:
    """The architecture that the most of these tensors speak for, and the fewest against."""
    fits = [fit(each, layout, shapes) for each in ARCHITECTURES.values()]
    return max(fits, key=lambda each: len(each.right) - len(each.missing) - len(each.wrong))


def contained(content: Any, container: str) -> dict[str, Any] | None:
    """The state dict in a container of the file, without wrappers' prefixes; None where there is none.

    >>> contained({"state_dict": {"module.conv1.weight": 1}}, "state_dict")
    {'conv1.weight': 1}
    """
    for part in filter(None, container.split("/")):
        content = content.get(part) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        return None
    state: dict[str, Any] = dict(content)
    for wrapper in _NESTED:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def renamed(tensors: Mapping[str, Tensor], architecture: Architecture, layout: Layout) -> dict[str, Tensor]:
    """Neutral tensors under a layout's names; what it has no name for is not among them."""
    named = ((layout(slot), tensors.get(neutral(slot))) for slot in architecture.slots)
    return {name: tensor for name, tensor in named if name is not None and tensor is not None}
