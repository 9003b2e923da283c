"""What is known about a network besides its tensors: its input format, its stride, its method, and how files store it.

A file holds its metadata as a dictionary under ``METADATA_KEY``, in one of two versions. Version 1 names a ResNet's
architecture, and the tensors have torchvision's names. Version 2, written by ``pretrain``, names any backbone, and the
tensors have the names of that network.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from ssql_det.convert.architecture import ARCHITECTURES, Architecture
from ssql_det.core.errors import UserError, printable

METADATA_KEY = "ssql_det"
RESNET_VERSION, BACKBONE_VERSION = 1, 2
BRANCHES = ("online", "momentum")  # the trained network, and its moving average
_MAX_NAME_LENGTH = 200  # of a backbone's name


@dataclass(frozen=True)
class InputFormat:
    """The images a network was trained on: values 0 to 255, minus ``mean``, divided by ``std``, in channel order."""

    channels: str  # "RGB" or "BGR"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def value_range(self) -> tuple[float, float]:
        """The least and the greatest value of a normalized image.

        >>> [round(value, 2) for value in IMAGENET.value_range]
        [-2.12, 2.64]
        """
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
    """Fields that are ``None`` are unknown.

    ``stride_in_1x1`` is Detectron2's ``STRIDE_IN_1X1``: a bottleneck has its stride in the first 1x1 conv, as in MSRA's
    networks; False: in the 3x3 conv. ``branch``, one of ``BRANCHES``, says which network of its training it is,
    ``seed`` which seed the training had. ``is_input_known`` is false where input and stride were not read but assumed
    from the convention of the file's format.
    """

    input: InputFormat | None = None
    stride_in_1x1: bool | None = None
    method: str | None = None  # of the pretraining, such as ssql-simsiam
    branch: str = "online"
    seed: int | None = None
    is_input_known: bool = False

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields | {"from_file": fields.pop("is_input_known")}  # its name in files

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Metadata:
        """From :meth:`to_dict`, also by way of JSON; invalid values are errors."""
        input_format = fields.get("input")
        if input_format is not None:
            channels, mean, std = input_format["channels"], input_format["mean"], input_format["std"]
            input_format = InputFormat(channels, _check_triple(mean), _check_triple(std))
            if channels not in ("RGB", "BGR") or min(input_format.std) <= 0:
                raise ValueError(f"invalid input: {reprlib.repr([channels, mean, std])}")
        stride, method, branch = fields.get("stride_in_1x1"), fields.get("method"), fields.get("branch", "online")
        if not isinstance(stride, bool | None) or not isinstance(method, str | None) or branch not in BRANCHES:
            raise ValueError(f"invalid stride_in_1x1, method or branch: {reprlib.repr([stride, method, branch])}")
        seed = fields.get("seed")
        if not isinstance(seed, int | None):
            raise ValueError(f"invalid seed: {reprlib.repr(seed)}")
        return cls(input_format, stride, method, branch, seed, fields.get("from_file", True) is True)


def _check_triple(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    if not all(isinstance(value, float | int) and math.isfinite(value) for value in (first, second, third)):
        raise ValueError(f"{reprlib.repr(values)} are not three numbers")
    return float(first), float(second), float(third)


def assume_metadata(
    architecture: Architecture, method: str | None = None, input_format: InputFormat | None = None
) -> Metadata:
    """The convention of PyTorch's ResNets: RGB, ImageNet's (or CIFAR's) mean and std, the stride in the 3x3 conv."""
    default = CIFAR if architecture.has_cifar_stem else IMAGENET
    return Metadata(input_format or default, stride_in_1x1=False, method=method)


def assume_model_zoo_metadata(architecture: Architecture) -> Metadata:
    """The convention of Detectron2's model zoo: MSRA's ResNets, and Facebook's ResNeXts."""
    if architecture.groups == 1:
        return Metadata(MSRA, stride_in_1x1=True)
    return Metadata(InputFormat("BGR", MSRA.mean, (57.375, 57.12, 58.395)), stride_in_1x1=False)


def with_known_input(metadata: Metadata, input_format: InputFormat, stride_in_1x1: bool) -> Metadata:
    """The metadata with this input and stride, which count as known, no longer as assumed from the file's format."""
    return replace(metadata, input=input_format, stride_in_1x1=stride_in_1x1, is_input_known=True)


def build_metadata_dict(backbone: str, metadata: Metadata) -> dict[str, Any]:
    """The metadata of a file of version 2; ``backbone`` is a name of `ssql_det.backbones`.

    >>> build_metadata_dict("timm/mobilenetv2_050", Metadata(method="BYOL"))["backbone"]
    {'name': 'timm/mobilenetv2_050'}
    """
    return {"version": BACKBONE_VERSION, "backbone": {"name": backbone}, **metadata.to_dict()}


def read_backbone_name(content: Any) -> str | None:
    """The backbone that a file of version 2 names; None for other files, an error for an invalid name."""
    stored = content.get(METADATA_KEY) if isinstance(content, Mapping) else None
    if not isinstance(stored, Mapping) or stored.get("version") != BACKBONE_VERSION:
        return None
    match stored["backbone"]:
        case {"name": str(name), **others} if not others and len(name) <= _MAX_NAME_LENGTH:
            return name
        case other:
            raise ValueError(f"invalid backbone: {reprlib.repr(other)}")


def resolve_network_name(backbone: str) -> str:
    """The architecture of a backbone that is a known ResNet, whoever builds it; else the backbone's own name.

    The name decides and not the tensors: an anti-aliased ResNet has the tensors of the plain one but computes
    something else.

    >>> resolve_network_name("timm/resnet50"), resolve_network_name("timm/resnetaa50")
    ('resnet50', 'timm/resnetaa50')
    """
    name = backbone.removeprefix("timm/")
    return name if name in ARCHITECTURES else backbone


def parse_metadata(stored: Mapping[str, Any], architecture: Architecture) -> Metadata:
    """The metadata stored in a file; an error where it names another network than the tensors are of."""
    if not isinstance(stored, Mapping):
        raise ValueError(f"not a dictionary: {reprlib.repr(stored)}")
    version, backbone = stored["version"], read_backbone_name({METADATA_KEY: stored})
    if version not in (RESNET_VERSION, BACKBONE_VERSION):
        raise ValueError(
            f"unknown version {reprlib.repr(version)}; this release reads {RESNET_VERSION} and {BACKBONE_VERSION}"
        )
    name = stored["arch"] if backbone is None else resolve_network_name(backbone)
    # Another backbone's name passes where its tensors fit: the caller has chosen the architecture.
    if name != architecture.name and (backbone is None or name in ARCHITECTURES):
        raise ValueError(f"the file names {reprlib.repr(name)}, but its tensors are a {architecture.name}'s")
    return Metadata.from_dict(stored)


@contextmanager
def translate_metadata_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every exception into a UserError about the file, since its metadata can be wrong in any way."""
    try:
        yield
    except Exception as failure:
        reason = printable(repr(failure), 200)
        raise UserError(f"{path}: its metadata is invalid ({reason}); download or write the file again") from failure
