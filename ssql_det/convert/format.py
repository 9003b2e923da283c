"""A checkpoint format as data: what it calls each tensor, where it keeps the backbone, how it is known.

Names are made from places (:class:`Slot`), never taken apart: a table cannot pair two tensors wrongly, and what has
no place is left over to be reported.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ssql_det.convert.architecture import ARCHITECTURES, NORM_LEAVES, NUM_BATCHES_TRACKED, Architecture, Slot
from ssql_det.convert.checkpoint import Checkpoint, InputFormat, Metadata, customary

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_NESTED = (*WRAPPERS, *WRAPPERS)  # one in the other, either way
_LARGEST = 1 << 30  # bytes of a weight, generously
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Names:
    """How one kind of ResNet names its parts. The defaults are torchvision's names, which are the neutral ones.

    In the templates stages count from ``first_stage``, blocks from 0, and ``convs`` spells the convs of a block.

    >>> Names()(get_architecture("resnet50").slots[-1])
    'layer4.2.bn3.num_batches_tracked'
    """

    stem: str = "conv1"
    stem_norm: str = "bn1"
    conv: str = "layer{stage}.{block}.conv{conv}"
    norm: str = "layer{stage}.{block}.bn{conv}"
    shortcut: str = "layer{stage}.{block}.downsample.0"
    shortcut_norm: str = "layer{stage}.{block}.downsample.1"
    first_stage: int = 1
    convs: str = "123"
    conv_leaves: Mapping[str, str] = field(default_factory=lambda: {"weight": ".weight"})
    norm_leaves: Mapping[str, str] = field(default_factory=lambda: {leaf: f".{leaf}" for leaf in NORM_LEAVES})

    def __call__(self, slot: Slot) -> str | None:
        """The name of a place, or None where the format has none for it."""
        leaf = (self.norm_leaves if slot.is_norm else self.conv_leaves).get(slot.leaf)
        if leaf is None:
            return None
        if slot.stage == 0:
            return (self.stem_norm if slot.is_norm else self.stem) + leaf
        template = (
            (self.norm if slot.is_norm else self.conv)
            if slot.conv
            else (self.shortcut_norm if slot.is_norm else self.shortcut)
        )
        conv = self.convs[slot.conv - 1] if slot.conv else ""
        return template.format(stage=slot.stage - 1 + self.first_stage, block=slot.block, conv=conv) + leaf


TORCHVISION = Names()


def neutral(slot: Slot) -> str:
    """The name of a place in the neutral form.

    >>> neutral(get_architecture("resnet18").slots[0])
    'conv1.weight'
    """
    name = TORCHVISION(slot)
    assert name is not None, "torchvision names every place"
    return name


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
    >>> len(fit(get_architecture("resnet18"), Layout(), {"conv1.weight": (64, 3, 7, 7)}).missing)
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
            if slot.leaf != NUM_BATCHES_TRACKED:
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


@dataclass(frozen=True)
class Writer:
    """How a format is written. ``write`` returns what was left behind, by name and reason, or refuses."""

    suffixes: tuple[str, ...]
    write: Callable[[Checkpoint, IO[bytes]], Mapping[str, str]]


@dataclass(frozen=True)
class Found:
    """A format recognized in a file, and ``why``: the key that gave it away."""

    format: Format
    branch: str
    layout: Layout
    container: str
    state: dict[str, Any]
    why: str


@dataclass(frozen=True)
class Part:
    """A tensor of a detector beside its backbone: its name in the file, its name in Detectron2, the tensor as there."""

    source: str
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Format:
    """One format. ``branches`` has the one that is read by default first, each with the layouts it comes in.

    ``left_out`` says why what fits a pattern is not taken, ``outside`` why what is not under the prefix is not.
    ``method`` and ``images`` are what is trained with it by custom; ``facts`` reads what the file itself tells;
    ``rest`` finds, in the file and among the names left over, a detector's other tensors.
    """

    name: str
    title: str
    branches: Mapping[str, tuple[Layout, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    outside: str | None = None
    method: str | None = None
    images: InputFormat | None = None
    metadata: Callable[[Any, Found, Architecture], Metadata] | None = None
    rest: Callable[[Any, dict[str, Any]], list[Part]] | None = None
    writer: Writer | None = None
    note: str = ""  # what the format does not carry

    def find(self, content: Any, branch: str | None = None) -> Found | None:
        """The branch, by default the first that is there, where this file is of this format."""
        for name in self.branches if branch is None else [branch]:
            for layout in self.branches.get(name, ()):
                for container in layout.containers:
                    state = contained(content, container)
                    if state is not None and layout.is_in(state, content):
                        inside = f" in {container!r}" if container else ""
                        beside = f", beside {' and '.join(layout.marks)}" if layout.marks else ""
                        return Found(self, name, layout, container, state, f"it has {layout.first}{inside}{beside}")
        return None

    def branches_in(self, content: Any) -> tuple[str, ...]:
        return tuple(name for name in self.branches if self.find(content, name) is not None)

    def reason_to_leave(self, name: str, found: Found) -> str | None:
        """Why a name is not taken on purpose: it is of another branch, or the format says so."""
        for branch, layouts in self.branches.items():
            if branch == found.branch or (found.layout.prefix and name.startswith(found.layout.prefix)):
                continue
            if any(each.prefix and name.startswith(each.prefix) for each in layouts):
                return f"of the {branch} branch"
        if self.outside is not None and not name.startswith(found.layout.prefix):
            return self.outside
        return next((why for pattern, why in self.left_out.items() if fnmatch.fnmatchcase(name, pattern)), None)

    def facts_of(self, content: Any, found: Found, architecture: Architecture) -> Metadata:
        """What is known about the network beside its tensors: the branch is the one found."""
        if self.metadata is None:
            metadata = customary(architecture, self.method, self.images)
        else:
            metadata = self.metadata(content, found, architecture)
        return metadata if metadata.from_file else replace(metadata, branch=found.branch)


def as_tensor(value: Any) -> Tensor | None:
    """A tensor or an array of numbers as a tensor that shares its memory; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        value = torch.from_numpy(value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("=")))
    return value.detach() if isinstance(value, Tensor) else None


def is_oversized_view(tensor: Tensor) -> bool:
    """Whether it claims more than it has and than a weight takes: one number can be spread over any shape."""
    return tensor.nbytes > max(tensor.untyped_storage().nbytes(), _LARGEST)


def alone(tensor: Tensor) -> Tensor:
    """The tensor in its dimensions' order: not a view that would take a whole storage along into a file."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def find_invalid_values(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Tensors that no network can be run with: of integers, or with NaN or infinite values."""
    found = {}
    for name, tensor in tensors:
        if tensor.dtype not in _FLOATS:
            found[name] = f"holds {str(tensor.dtype).removeprefix('torch.')} values, not floats"
        elif not tensor.isfinite().all():
            found[name] = "has NaN or infinite values"
    return found
