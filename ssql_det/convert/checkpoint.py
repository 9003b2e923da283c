"""The neutral form: a ResNet's tensors under torchvision's names, and what is known about them."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.coverage import Coverage
from ssql_det.convert.facts import Facts

KEY = "ssql_det"  # under which a file keeps what is known about its network
_VERSION = 1


@dataclass(frozen=True)
class Source:
    """The file a checkpoint was read from, by its content, and ``why`` it is taken to be of its format.

    ``branches`` are all that it has: the network that is trained, its moving average, or both.
    """

    name: str
    sha256: str
    format: str
    why: str = ""
    branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A backbone, whatever file it came in. ``detector`` has the rest of a detector, under Detectron2's names.

    >>> checkpoint = read("r50.pkl")
    >>> checkpoint.architecture.name, checkpoint.tensors["conv1.weight"].shape
    ('resnet50', torch.Size([64, 3, 7, 7]))
    """

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    facts: Facts = field(default_factory=Facts)
    source: Source | None = None
    coverage: Coverage = field(default_factory=Coverage)
    detector: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def called(self) -> str:
        """The name for it in a sentence."""
        return "the checkpoint" if self.source is None else self.source.name

    @property
    def branch(self) -> str:
        """Which network of its file it is, for a person.

        >>> read("moco.pth.tar").branch
        'online branch, of online and momentum'
        """
        there = self.source.branches if self.source else ()
        return f"{self.facts.branch} branch" + (f", of {' and '.join(there)}" if len(there) > 1 else "")

    def description(self) -> dict[str, Any]:
        """What is known, in plain values, for files that have room for it."""
        source = self.source and {key: vars(self.source)[key] for key in ("name", "sha256", "format")}
        return {"version": _VERSION, "arch": self.architecture.name, **self.facts.to_plain(), "source": source}


def described(plain: Mapping[str, Any], architecture: Architecture) -> Facts:
    """The facts in a description that came with a file; an error where it is of another network than the tensors."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"it is {reprlib.repr(plain)}")
    version, arch = plain["version"], plain["arch"]
    if version != _VERSION:
        raise ValueError(f"it is of version {reprlib.repr(version)}, and known is version {_VERSION}")
    if arch != architecture.name:
        raise ValueError(f"it calls itself {reprlib.repr(arch)}, and its tensors are a {architecture.name}'s")
    return Facts.from_plain(plain)
