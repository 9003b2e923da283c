"""What a checkpoint format is: the names it gives to a ResNet's tensors, where a file has them, how it is recognized.

The name of each tensor is generated from its position in the network (:class:`TensorSpec`) and looked up in the file.
Names in the file are never parsed, so two tensors cannot be confused, and a name that was not looked up is reported.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ssql_det.convert.architecture import ARCHITECTURES, NORM_TENSORS, NUM_BATCHES_TRACKED, Architecture, TensorSpec
from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.metadata import InputFormat, Metadata, assume_metadata

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_NESTED_PREFIXES = (*WRAPPER_PREFIXES, *WRAPPER_PREFIXES)  # one inside the other, in either order
_MAX_WEIGHT_BYTES = 1 << 30  # more than any weight of a ResNet has


@dataclass(frozen=True)
class Names:
    """Templates for the names of a ResNet's tensors. The defaults are torchvision's.

    Stages are counted from ``first_stage``, blocks from 0; ``conv_labels`` has a character for each conv of a block.
    The suffixes, by a tensor's name in its layer, are added to the layer's name; the format lacks tensors without one.

    >>> from ssql_det.convert.architecture import get_architecture
    >>> Names().get_name(get_architecture("resnet50").tensors[-1])
    'layer4.2.bn3.num_batches_tracked'
    """

    stem: str = "conv1"
    stem_norm: str = "bn1"
    conv: str = "layer{stage}.{block}.conv{conv}"
    norm: str = "layer{stage}.{block}.bn{conv}"
    shortcut: str = "layer{stage}.{block}.downsample.0"
    shortcut_norm: str = "layer{stage}.{block}.downsample.1"
    first_stage: int = 1
    conv_labels: str = "123"
    conv_suffixes: Mapping[str, str] = field(default_factory=lambda: {"weight": ".weight"})
    norm_suffixes: Mapping[str, str] = field(default_factory=lambda: {name: f".{name}" for name in NORM_TENSORS})

    def get_name(self, spec: TensorSpec) -> str | None:
        """The name of a tensor, or None if the format does not have it."""
        suffix = (self.norm_suffixes if spec.is_norm else self.conv_suffixes).get(spec.name_in_layer)
        if suffix is None:
            return None
        if spec.stage == 0:
            return (self.stem_norm if spec.is_norm else self.stem) + suffix
        template = (
            (self.norm if spec.is_norm else self.conv)
            if spec.conv
            else (self.shortcut_norm if spec.is_norm else self.shortcut)
        )
        conv = self.conv_labels[spec.conv - 1] if spec.conv else ""
        return template.format(stage=spec.stage - 1 + self.first_stage, block=spec.block, conv=conv) + suffix


TORCHVISION_NAMES = Names()


def torchvision_name(spec: TensorSpec) -> str:
    """The name of a tensor in :class:`Checkpoint`.

    >>> from ssql_det.convert.architecture import get_architecture
    >>> torchvision_name(get_architecture("resnet18").tensors[0])
    'conv1.weight'
    """
    name = TORCHVISION_NAMES.get_name(spec)
    assert name is not None, "torchvision names every tensor"
    return name


@dataclass(frozen=True)
class Layout:
    """Where a format has a ResNet: the names of its tensors, their prefix, and the dictionary that contains them.

    A file has this layout if one of ``containers`` (keys joined by slashes; "" is the file itself) has the stem's conv
    and, for each pattern of ``required_keys``, a fitting key is in it or at the top level of the file.
    ``last_stage_prefix`` replaces ``prefix`` for the last stage, which a C4 detector has in its head. ``constants``
    makes norm tensors that the format omits because their values are always the same.
    """

    prefix: str = ""
    names: Names = TORCHVISION_NAMES
    containers: tuple[str, ...] = ("", "state_dict", "model", "model_state_dict")
    required_keys: tuple[str, ...] = ()
    last_stage_prefix: str | None = None
    constants: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = field(default_factory=dict)
    _named: dict[Architecture, tuple[tuple[TensorSpec, str], ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def name_tensors(self, architecture: Architecture) -> tuple[tuple[TensorSpec, str], ...]:
        """The tensors that the format has, each with its name; kept, because every read compares all architectures."""
        if architecture not in self._named:
            names = ((spec, self.get_name(spec)) for spec in architecture.tensors)
            self._named[architecture] = tuple((spec, name) for spec, name in names if name is not None)
        return self._named[architecture]

    def get_name(self, spec: TensorSpec) -> str | None:
        name = self.names.get_name(spec)
        if name is None:
            return None
        is_moved = self.last_stage_prefix is not None and spec.stage == 4
        return f"{self.last_stage_prefix if is_moved else self.prefix}{name}"

    def matches(self, state: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
        keys = [*state, *(key for key in content if isinstance(key, str))]
        return self.stem_key in state and all(fnmatch.filter(keys, pattern) for pattern in self.required_keys)

    @property
    def stem_key(self) -> str:
        """The name of the stem's conv weight, by which a layout is recognized."""
        return self.prefix + self.names.stem + self.names.conv_suffixes["weight"]


@dataclass(frozen=True)
class ArchitectureMatch:
    """How the tensors of a file agree with an architecture."""

    architecture: Architecture
    matched: Mapping[TensorSpec, str]  # to names in the file
    missing: tuple[str, ...]  # names that the file lacks
    mismatched: Mapping[str, str]  # name: how its shape differs


def match_architecture(
    architecture: Architecture, layout: Layout, shapes: Mapping[str, Sequence[int]]
) -> ArchitectureMatch:
    """Compare names and shapes; a missing ``num_batches_tracked`` is ignored.

    >>> from ssql_det.convert.architecture import get_architecture
    >>> len(match_architecture(get_architecture("resnet18"), Layout(), {"conv1.weight": (64, 3, 7, 7)}).missing)
    99
    """
    matched: dict[TensorSpec, str] = {}
    missing: list[str] = []
    mismatched: dict[str, str] = {}
    for spec, name in layout.name_tensors(architecture):
        if name not in shapes:
            if spec.name_in_layer != NUM_BATCHES_TRACKED:
                missing.append(name)
        elif tuple(shapes[name]) != spec.shape:
            mismatched[name] = f"is of shape {list(shapes[name])}, in a {architecture.name} it is {list(spec.shape)}"
        else:
            matched[spec] = name
    return ArchitectureMatch(architecture, matched, tuple(missing), mismatched)


def find_architecture(layout: Layout, shapes: Mapping[str, Sequence[int]]) -> ArchitectureMatch:
    """The architecture with the most tensors matched, less those missing and mismatched."""
    candidates = [match_architecture(architecture, layout, shapes) for architecture in ARCHITECTURES.values()]
    return max(candidates, key=lambda match: len(match.matched) - len(match.missing) - len(match.mismatched))


def get_state_dict(content: Any, container: str) -> dict[str, Any] | None:
    """The state dict in a container of the file, without wrappers' prefixes; None if there is none.

    >>> get_state_dict({"state_dict": {"module.conv1.weight": 1}}, "state_dict")
    {'conv1.weight': 1}
    """
    for key in filter(None, container.split("/")):
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        return None
    state: dict[str, Any] = dict(content)
    for prefix in _NESTED_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def rename_tensors(tensors: Mapping[str, Tensor], architecture: Architecture, layout: Layout) -> dict[str, Tensor]:
    """From torchvision's names to a layout's. Tensors that the layout has no name for are dropped."""
    renamed = ((layout.get_name(spec), tensors.get(torchvision_name(spec))) for spec in architecture.tensors)
    return {name: tensor for name, tensor in renamed if name is not None and tensor is not None}


@dataclass(frozen=True)
class Writer:
    """Writes a format. ``write`` returns the tensors it could not write, with the reason of each, or refuses."""

    suffixes: tuple[str, ...]
    write: Callable[[Checkpoint, IO[bytes]], Mapping[str, str]]


@dataclass(frozen=True)
class FormatMatch:
    """A format that was recognized in a file, the state dict there, and the ``reason``: the keys that were found."""

    format: Format
    branch: str
    layout: Layout
    container: str
    state: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class DetectorTensor:
    """A tensor of a detector that is not of its backbone. ``name`` is Detectron2's, ``key`` the one in the file."""

    key: str
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class Format:
    """One checkpoint format, for reading and, with a ``writer``, for writing.

    ``branches`` has the layouts of each branch; the first branch is read by default. ``left_out`` gives the reason for
    leaving out the names that fit a pattern, ``outside_prefix`` for those without the layout's prefix. ``method`` and
    ``input`` hold for all files of the format; ``read_metadata`` is for those that say more. ``find_detector_tensors``
    gets the file and the entries of the state dict that are not of the backbone.
    """

    name: str
    title: str
    branches: Mapping[str, tuple[Layout, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    outside_prefix: str | None = None
    method: str | None = None
    input: InputFormat | None = None
    read_metadata: Callable[[Any, FormatMatch, Architecture], Metadata] | None = None
    find_detector_tensors: Callable[[Any, dict[str, Any]], list[DetectorTensor]] | None = None
    writer: Writer | None = None
    not_stored: str = ""  # what such files do not say or hold, for --formats

    def match(self, content: Any, branch: str | None = None) -> FormatMatch | None:
        """The first branch that the file has, or the one given; None if the file is not of this format."""
        for name in self.branches if branch is None else [branch]:
            for layout in self.branches.get(name, ()):
                for container in layout.containers:
                    state = get_state_dict(content, container)
                    if state is not None and layout.matches(state, content):
                        where = f" in {container!r}" if container else ""
                        also = "".join(f" and {pattern}" for pattern in layout.required_keys)
                        return FormatMatch(
                            self, name, layout, container, state, f"it has {layout.stem_key}{where}{also}"
                        )
        return None

    def list_branches(self, content: Any) -> tuple[str, ...]:
        """The branches that a file has."""
        return tuple(name for name in self.branches if self.match(content, name) is not None)

    def reason_to_leave_out(self, name: str, match: FormatMatch) -> str | None:
        """Why the tensor of this name is not of the backbone; None for an unexpected name."""
        for branch, layouts in self.branches.items():
            if branch == match.branch or (match.layout.prefix and name.startswith(match.layout.prefix)):
                continue
            if any(layout.prefix and name.startswith(layout.prefix) for layout in layouts):
                return f"of the {branch} branch"
        if self.outside_prefix is not None and not name.startswith(match.layout.prefix):
            return self.outside_prefix
        return next((reason for pattern, reason in self.left_out.items() if fnmatch.fnmatchcase(name, pattern)), None)

    def get_metadata(self, content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
        if self.read_metadata is None:
            metadata = assume_metadata(architecture, self.method, self.input)
        else:
            metadata = self.read_metadata(content, match, architecture)
        return metadata if metadata.is_input_known else replace(metadata, branch=match.branch)


def as_tensor(value: Any) -> Tensor | None:
    """A tensor or an array of numbers as a tensor that shares its memory; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        value = torch.from_numpy(value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("=")))
    return value.detach() if isinstance(value, Tensor) else None


def is_oversized_view(tensor: Tensor) -> bool:
    """Whether a tensor is larger than its storage and than any weight: one number can be expanded to any shape."""
    return tensor.nbytes > max(tensor.untyped_storage().nbytes(), _MAX_WEIGHT_BYTES)


def compact(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and in a storage of its own size; a view would be saved with all that it is a view of."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
