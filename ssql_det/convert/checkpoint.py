"""The neutral form: a ResNet's tensors under torchvision's names, and what they do not say themselves.

A file tells what is known in a description. Of version 1 it is of a ResNet, by its architecture; of version 2, which a
training writes, of any network, by its builder's name, and the tensors are under the network's own names.
"""

from __future__ import annotations

import fnmatch
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from ssql_det.convert.architecture import ARCHITECTURES, Architecture
from ssql_det.core.errors import UserError, printable

METADATA_KEY = "ssql_det"  # under which a file keeps what is known about its network
_OF_RESNET, _OF_ANY = 1, 2  # versions
_SHOWN, _LONGEST = 3, 200  # names in a sentence, characters of each
BRANCHES = ("online", "momentum")  # the network that is trained, and its moving average


@dataclass(frozen=True)
class InputFormat:
    """The images a network was trained on: values 0 to 255, less ``mean``, divided by ``std``, in channel order."""

    channels: str  # "RGB" or "BGR"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def value_range(self) -> tuple[float, float]:
        """The least and the greatest value that an image can have."""
        channels = list(zip(self.mean, self.std, strict=True))
        return min(-mean / std for mean, std in channels), max((255 - mean) / std for mean, std in channels)

    def flip_channels(self) -> InputFormat:
        """The same images with their channels in the opposite order.

        >>> IMAGENET.flip_channels().channels
        'BGR'
        """
        return InputFormat(self.channels[::-1], self.mean[::-1], self.std[::-1])


IMAGENET = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# As in the published SSQL configs: .4914, .4822, .4465 and .2023, .1994, .2010 of 255.
CIFAR = InputFormat("RGB", (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))
UNIT = InputFormat("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))  # values 0 to 1, not normalized
MSRA = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))  # Detectron2's default


@dataclass(frozen=True)
class Metadata:
    """``None`` is unknown. ``stride_in_1x1``: a bottleneck strides in its first 1x1 conv, as in MSRA's networks.

    ``seed`` is that of the training; ``from_file`` tells whether the file says it, or the custom of its format.
    """

    input: InputFormat | None = None
    stride_in_1x1: bool | None = None
    method: str | None = None
    branch: str = "online"
    seed: int | None = None
    from_file: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Metadata:
        """What :meth:`to_dict` gave, also after a trip through JSON; an error for anything else."""
        images = plain.get("input")
        if images is not None:
            channels, mean, std = images["channels"], images["mean"], images["std"]
            images = InputFormat(channels, _triple(mean), _triple(std))
            if channels not in ("RGB", "BGR") or min(images.std) <= 0:
                raise ValueError(f"its images are {reprlib.repr([channels, mean, std])}")
        stride, method, branch = plain.get("stride_in_1x1"), plain.get("method"), plain.get("branch", "online")
        if not isinstance(stride, bool | None) or not isinstance(method, str | None) or branch not in BRANCHES:
            raise ValueError(f"stride_in_1x1, method and branch are {reprlib.repr([stride, method, branch])}")
        seed = plain.get("seed")
        if not isinstance(seed, int | None):
            raise ValueError(f"its seed is {reprlib.repr(seed)}")
        return cls(images, stride, method, branch, seed, plain.get("from_file", True) is True)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    if not all(isinstance(each, float | int) and math.isfinite(each) for each in (first, second, third)):
        raise ValueError(f"{reprlib.repr(values)} are not three numbers")
    return float(first), float(second), float(third)


def customary(architecture: Architecture, method: str | None = None, images: InputFormat | None = None) -> Metadata:
    """What nearly every PyTorch ResNet is: RGB, normalized as its data set is by custom, a stride in the 3x3 conv."""
    return Metadata(images or (CIFAR if architecture.is_cifar else IMAGENET), stride_in_1x1=False, method=method)


def customary_in_zoo(architecture: Architecture) -> Metadata:
    """What Detectron2's model zoo is trained from: MSRA's ResNets, and Facebook's ResNeXts."""
    if architecture.groups == 1:
        return Metadata(MSRA, stride_in_1x1=True)
    return Metadata(InputFormat("BGR", MSRA.mean, (57.375, 57.12, 58.395)), stride_in_1x1=False)


def confirm_metadata(metadata: Metadata, images: InputFormat, stride_in_1x1: bool) -> Metadata:
    """Facts from whoever trained the network."""
    return replace(metadata, input=images, stride_in_1x1=stride_in_1x1, from_file=True)


@dataclass(frozen=True)
class Coverage:
    """What became of every tensor, of a file that is read or of a network that is loaded: nothing goes in silence.

    Names in the file, or in the network; ``left_out`` says why of each.
    """

    used: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    wrong: Mapping[str, str] = field(default_factory=dict)  # a name, and what is wrong with its tensor
    beside: tuple[str, ...] = ()  # what else the file has, such as an optimizer or another branch

    @property
    def percent(self) -> float:
        """How much of the backbone found its place, of 100."""
        wanted = len(self.used) + len(self.missing) + len(self.wrong)
        return 100 * len(self.used) / wanted if wanted else 0.0

    def check(self, what: str, allow: Sequence[str] = ()) -> None:
        """Refuse unless all is in its place. What is unmatched may be allowed, by patterns such as ``neck.*``."""
        if self.wrong:
            faults = summarize_names([f"{name} {fault}" for name, fault in self.wrong.items()])
            raise UserError(f"{what}: {faults}; is it the right file, whole, and the right architecture?")
        if self.missing:
            raise UserError(
                f"{what}: {len(self.missing)} tensor(s) are missing: {summarize_names(self.missing)}; "
                "get the whole file"
            )
        unmatched = [name for name in self.unmatched if not any(fnmatch.fnmatch(name, each) for each in allow)]
        if unmatched:
            raise UserError(
                f"{what}: {len(unmatched)} tensor(s) have no place: {summarize_names(unmatched)}; "
                f"if that is right, say --allow-unmatched '{_pattern(unmatched)}'"
            )

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file beside a run."""
        return {"percent": self.percent, **asdict(self)}


def summarize_names(names: Sequence[str]) -> str:
    """
    >>> summarize_names(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name, _LONGEST) for name in names[:_SHOWN]) + more


def _pattern(names: Sequence[str]) -> str:
    """The narrowest simple pattern that one could mean: a common beginning, else a name."""
    common = os.path.commonprefix(list(names)).rpartition(".")[0]  # noqa: RUF071 (letter by letter is meant)
    return printable(f"{common}.*" if common and len(names) > 1 else names[0], _LONGEST)


@dataclass(frozen=True)
class SourceFile:
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

    >>> checkpoint = read_checkpoint("r50.pkl")
    >>> checkpoint.architecture.name, checkpoint.tensors["conv1.weight"].shape
    ('resnet50', torch.Size([64, 3, 7, 7]))
    """

    architecture: Architecture
    tensors: Mapping[str, Tensor]
    metadata: Metadata = field(default_factory=Metadata)
    source: SourceFile | None = None
    coverage: Coverage = field(default_factory=Coverage)
    detector: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def display_name(self) -> str:
        """The name for it in a sentence."""
        return "the checkpoint" if self.source is None else self.source.name

    def metadata_dict(self) -> dict[str, Any]:
        """What is known, in plain values, for files that have room for it."""
        source = self.source and {key: vars(self.source)[key] for key in ("name", "sha256", "format")}
        return {"version": _OF_RESNET, "arch": self.architecture.name, **self.metadata.to_dict(), "source": source}


def describe_branch(metadata: Metadata, source: SourceFile) -> str:
    """Which network of its file it is, for a person: ``online branch, of online and momentum``."""
    among = f", of {' and '.join(source.branches)}" if len(source.branches) > 1 else ""
    return f"{metadata.branch} branch{among}"


def build_metadata_dict(backbone: str, metadata: Metadata) -> dict[str, Any]:
    return {"version": _OF_ANY, "backbone": {"name": backbone}, **metadata.to_dict()}


def read_backbone_name(content: Any) -> str | None:
    """The builder that a file of version 2 names; None in other files, an error where that is no name."""
    plain = content.get(METADATA_KEY) if isinstance(content, Mapping) else None
    if not isinstance(plain, Mapping) or plain.get("version") != _OF_ANY:
        return None
    match plain["backbone"]:
        case {"name": str(name), **others} if not others and len(name) <= _LONGEST:
            return name
        case other:
            raise ValueError(f"its backbone is {reprlib.repr(other)}")


def resolve_network_name(backbone: str) -> str:
    """What a builder of this name makes: a ResNet's architecture, whoever builds it; else the builder's own name.

    Names tell and not tensors: an anti-aliased ResNet has those of the plain one, and is another network.

    >>> network_named("timm/resnet50"), network_named("timm/resnetaa50")
    ('resnet50', 'timm/resnetaa50')
    """
    name = backbone.removeprefix("timm/")
    return name if name in ARCHITECTURES else backbone


def described(plain: Mapping[str, Any], architecture: Architecture) -> Metadata:
    """The facts in a description that came with a file; an error where it is of another network than the tensors."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"it is {reprlib.repr(plain)}")
    version, backbone = plain["version"], read_backbone_name({METADATA_KEY: plain})
    if version not in (_OF_RESNET, _OF_ANY):
        raise ValueError(f"it is of version {reprlib.repr(version)}, and known are versions {_OF_RESNET} and {_OF_ANY}")
    arch = plain["arch"] if backbone is None else resolve_network_name(backbone)
    if arch != architecture.name and (backbone is None or arch in ARCHITECTURES):  # else somebody said which it is
        raise ValueError(f"it calls itself {reprlib.repr(arch)}, and its tensors are a {architecture.name}'s")
    return Metadata.from_dict(plain)
