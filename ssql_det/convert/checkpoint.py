"""The checkpoint between reading and writing: tensors under torchvision's names, metadata, and what was not used."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.metadata import RESNET_VERSION, Metadata
from ssql_det.core.errors import UserError, printable

_FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MAX_NAMES, _MAX_NAME_LENGTH = 3, 200  # in a message


@dataclass(frozen=True)
class Coverage:
    """What became of every tensor of a file that was read, or of a network that was loaded, by its name there.

    >>> coverage = Coverage(used=("conv1.weight",), left_out={"fc.weight": "a classifier"}, missing=("bn1.weight",))
    >>> coverage.percent
    50.0
    """

    used: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)  # name: reason
    unmatched: tuple[str, ...] = ()  # not expected, so neither used nor left out for a reason
    missing: tuple[str, ...] = ()  # expected, but not found
    invalid: Mapping[str, str] = field(default_factory=dict)  # name: what is wrong with its tensor
    not_read: tuple[str, ...] = ()  # other entries of the file, such as an optimizer or another branch

    @property
    def percent(self) -> float:
        """The used tensors, in percent of the expected ones."""
        expected = len(self.used) + len(self.missing) + len(self.invalid)
        return 100 * len(self.used) / expected if expected else 0.0

    def check(self, path: str, allow: Sequence[str] = ()) -> None:
        """Refuse an incomplete file. ``allow`` has patterns of unmatched names to ignore, such as ``neck.*``."""
        if self.invalid:
            faults = summarize_names([f"{name} {fault}" for name, fault in self.invalid.items()])
            raise UserError(f"{path}: {faults}; is it the right file, whole, and the right architecture?")
        if self.missing:
            raise UserError(
                f"{path}: {len(self.missing)} tensor(s) are missing: {summarize_names(self.missing)}; "
                "get the whole file"
            )
        unmatched = [name for name in self.unmatched if not any(fnmatch.fnmatch(name, pattern) for pattern in allow)]
        if unmatched:
            raise UserError(
                f"{path}: {len(unmatched)} unexpected tensor(s): {summarize_names(unmatched)}; "
                f"to leave them out, pass --allow-unmatched '{_suggest_pattern(unmatched)}'"
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of a run's ``coverage.json``."""
        return {
            "percent": self.percent,
            "used": self.used,
            "left_out": dict(self.left_out),
            "unmatched": self.unmatched,
            "missing": self.missing,
            "wrong": dict(self.invalid),
            "beside": self.not_read,
        }


def summarize_names(names: Sequence[str]) -> str:
    """
    >>> summarize_names(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(printable(name, _MAX_NAME_LENGTH) for name in names[:_MAX_NAMES]) + more


def _suggest_pattern(names: Sequence[str]) -> str:
    """The pattern that fits all names, if they have a common prefix; else the first name.

    >>> _suggest_pattern(["neck.0.weight", "neck.1.weight"])
    'neck.*'
    """
    common = os.path.commonprefix(list(names)).rpartition(".")[0]  # noqa: RUF071 (letter by letter is meant)
    return printable(f"{common}.*" if common and len(names) > 1 else names[0], _MAX_NAME_LENGTH)


@dataclass(frozen=True)
class SourceFile:
    """The file that a checkpoint was read from, and the ``reason`` why it is taken to be of its format.

    ``branches`` are those that the file has: the trained network (online), its moving average (momentum), or both.
    """

    name: str  # without the folder
    sha256: str
    format: str
    reason: str = ""
    branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A backbone under torchvision's names. ``detector`` has the other tensors of a detector, under Detectron2's names.

    >>> from ssql_det.convert import get_architecture
    >>> checkpoint = Checkpoint(get_architecture("narrow_resnet"), model.state_dict(), Metadata(method="SimSiam"))
    >>> checkpoint.tensors["conv1.weight"].shape
    torch.Size([24, 3, 7, 7])
    """

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    metadata: Metadata = field(default_factory=Metadata)
    source: SourceFile | None = None
    coverage: Coverage = field(default_factory=Coverage)
    detector: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def display_name(self) -> str:
        """The file's name, for messages and rows; a checkpoint that was made in memory has none."""
        return "the checkpoint" if self.source is None else self.source.name

    def metadata_dict(self) -> dict[str, Any]:
        """What a file of this checkpoint stores besides its tensors."""
        source = self.source and {key: vars(self.source)[key] for key in ("name", "sha256", "format")}
        return {
            "version": RESNET_VERSION,
            "arch": self.architecture.name,
            **self.metadata.to_dict(),
            "source": source,
        }


def describe_branch(metadata: Metadata, source: SourceFile) -> str:
    """Which network of a file was read.

    >>> describe_branch(Metadata(), SourceFile("byol.pth", "", "byol", branches=("online", "momentum")))
    'online branch, of online and momentum'
    """
    available = f", of {' and '.join(source.branches)}" if len(source.branches) > 1 else ""
    return f"{metadata.branch} branch{available}"


def check_state(state: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` that names the float tensors of a state dict with NaN or infinite values."""
    floats = ((name, tensor) for name, tensor in state.items() if tensor.is_floating_point())
    if invalid := find_invalid_values(floats):
        raise ValueError(summarize_names([f"{name} {problem}" for name, problem in invalid.items()]))


def find_invalid_values(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Weights that are not floats, or have NaN or infinite values, each with what is wrong.

    >>> find_invalid_values([("weight", torch.tensor([1.0, torch.nan]))])
    {'weight': 'has NaN or infinite values'}
    """
    invalid = {}
    for name, tensor in tensors:
        if tensor.dtype not in _FLOAT_TYPES:
            invalid[name] = f"holds {str(tensor.dtype).removeprefix('torch.')} values, not floats"
        elif tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # isfinite of all takes far longer
            invalid[name] = "has NaN or infinite values"
    return invalid
