"""The neutral form: a ResNet's tensors under torchvision's names, and what is known about them.

A file tells what is known in a description. Of version 1 it is of a ResNet, by its architecture; of version 2, which a
training writes, of any network, by its builder's name, and the tensors are under the network's own names.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ssql_det.convert.architecture import ARCHITECTURES, Architecture
from ssql_det.convert.coverage import Coverage
from ssql_det.convert.facts import Facts

KEY = "ssql_det"  # under which a file keeps what is known about its network
_OF_RESNET, _OF_ANY = 1, 2  # versions
_LONGEST = 200  # characters of a name


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

    def description(self) -> dict[str, Any]:
        """What is known, in plain values, for files that have room for it."""
        source = self.source and {key: vars(self.source)[key] for key in ("name", "sha256", "format")}
        return {"version": _OF_RESNET, "arch": self.architecture.name, **self.facts.to_plain(), "source": source}


def describe_branch(facts: Facts, source: Source) -> str:
    """Which network of its file it is, for a person: ``online branch, of online and momentum``."""
    among = f", of {' and '.join(source.branches)}" if len(source.branches) > 1 else ""
    return f"{facts.branch} branch{among}"


def describe_network(backbone: str, facts: Facts) -> dict[str, Any]:
    return {"version": _OF_ANY, "backbone": {"name": backbone}, **facts.to_plain()}


def backbone_named(content: Any) -> str | None:
    """The builder that a file of version 2 names; None in other files, an error where that is no name."""
    plain = content.get(KEY) if isinstance(content, Mapping) else None
    if not isinstance(plain, Mapping) or plain.get("version") != _OF_ANY:
        return None
    match plain["backbone"]:
        case {"name": str(name), **others} if not others and len(name) <= _LONGEST:
            return name
        case other:
            raise ValueError(f"its backbone is {reprlib.repr(other)}")


def network_named(backbone: str) -> str:
    """What a builder of this name makes: a ResNet's architecture, whoever builds it; else the builder's own name.

    Names tell and not tensors: an anti-aliased ResNet has those of the plain one, and is another network.

    >>> network_named("timm/resnet50"), network_named("timm/resnetaa50")
    ('resnet50', 'timm/resnetaa50')
    """
    name = backbone.removeprefix("timm/")
    return name if name in ARCHITECTURES else backbone


def described(plain: Mapping[str, Any], architecture: Architecture) -> Facts:
    """The facts in a description that came with a file; an error where it is of another network than the tensors."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"it is {reprlib.repr(plain)}")
    version, backbone = plain["version"], backbone_named({KEY: plain})
    if version not in (_OF_RESNET, _OF_ANY):
        raise ValueError(f"it is of version {reprlib.repr(version)}, and known are versions {_OF_RESNET} and {_OF_ANY}")
    arch = plain["arch"] if backbone is None else network_named(backbone)
    if arch != architecture.name and (backbone is None or arch in ARCHITECTURES):  # else somebody said which it is
        raise ValueError(f"it calls itself {reprlib.repr(arch)}, and its tensors are a {architecture.name}'s")
    return Facts.from_plain(plain)
