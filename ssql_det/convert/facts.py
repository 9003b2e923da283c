"""What a network's tensors do not say themselves: its images, where it strides, how it was trained."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ssql_det.convert.architecture import Architecture

BRANCHES = ("online", "momentum")  # the network that is trained, and its moving average


@dataclass(frozen=True)
class Input:
    """The images a network was trained on: values 0 to 255, less ``mean``, divided by ``std``, in channel order."""

    channels: str  # "RGB" or "BGR"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def turned(self) -> Input:
        """The same images with their channels in the opposite order.

        >>> IMAGENET.turned().channels
        'BGR'
        """
        red, green, blue = self.mean
        first, second, third = self.std
        return Input(self.channels[::-1], (blue, green, red), (third, second, first))


IMAGENET = Input("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# As in the published SSQL configs: .4914, .4822, .4465 and .2023, .1994, .2010 of 255.
CIFAR = Input("RGB", (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))
UNIT = Input("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))  # values 0 to 1, not normalized
MSRA = Input("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))  # Detectron2's default


@dataclass(frozen=True)
class Facts:
    """``None`` is unknown. ``stride_in_1x1``: a bottleneck strides in its first 1x1 conv, as in MSRA's networks.

    ``seed`` is that of the training; ``from_file`` tells whether the file says it, or the custom of its format.
    """

    input: Input | None = None
    stride_in_1x1: bool | None = None
    method: str | None = None
    branch: str = "online"
    seed: int | None = None
    from_file: bool = False

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Facts:
        """What :meth:`to_plain` gave, also after a trip through JSON; an error for anything else."""
        images = plain.get("input")
        if images is not None:
            channels, mean, std = images["channels"], images["mean"], images["std"]
            images = Input(channels, _triple(mean), _triple(std))
            if channels not in ("RGB", "BGR") or min(images.std) <= 0:
                raise ValueError(f"its images are {_short([channels, mean, std])}")
        stride, method, branch = plain.get("stride_in_1x1"), plain.get("method"), plain.get("branch", "online")
        if not isinstance(stride, bool | None) or not isinstance(method, str | None) or branch not in BRANCHES:
            raise ValueError(f"stride_in_1x1, method and branch are {_short([stride, method, branch])}")
        seed = plain.get("seed")
        if not isinstance(seed, int | None):
            raise ValueError(f"its seed is {_short(seed)}")
        return cls(images, stride, method, branch, seed, plain.get("from_file", True) is True)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    if not all(isinstance(each, float | int) and math.isfinite(each) for each in (first, second, third)):
        raise ValueError(f"{_short(values)} are not three numbers")
    return float(first), float(second), float(third)


def _short(values: object) -> str:
    """A foreign file's value in a message, however large."""
    return reprlib.repr(values)


def customary(architecture: Architecture, method: str | None = None, images: Input | None = None) -> Facts:
    """What nearly every PyTorch ResNet is: RGB, normalized as its data set is by custom, a stride in the 3x3 conv."""
    return Facts(images or (CIFAR if architecture.is_cifar else IMAGENET), stride_in_1x1=False, method=method)


def told(facts: Facts, images: Input, stride_in_1x1: bool) -> Facts:
    """Facts from whoever trained the network."""
    return replace(facts, input=images, stride_in_1x1=stride_in_1x1, from_file=True)
