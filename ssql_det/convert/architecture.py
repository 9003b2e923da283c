"""ResNets as lists of tensors: what each has, where, of which shape. No network is built here.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with the widths and groups of Wide ResNet
(Zagoruyko and Komodakis, 2016) and ResNeXt (Xie et al., 2017) as torchvision has them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ssql_det.core.errors import UserError, did_you_mean

NORM_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NUM_BATCHES_TRACKED = "num_batches_tracked"  # counts batches seen, a fact of the training; FrozenBN has none


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in a ResNet, under no particular name.

    ``stage`` 0 is the stem, with the one conv 1; ``conv`` 0 is a block's shortcut; a norm belongs to its conv.
    """

    stage: int
    block: int
    conv: int
    is_norm: bool
    leaf: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A ResNet's proportions.

    >>> len(get_architecture("resnet18").slots)
    120
    """

    name: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]  # channels that each stage puts out
    inner: tuple[int, ...] = ()  # channels of each stage's 3x3 convs, where blocks are bottlenecks
    groups: int = 1
    stem_kernel: int = 7

    @property
    def is_bottleneck(self) -> bool:
        return bool(self.inner)

    @property
    def is_cifar(self) -> bool:
        return self.stem_kernel == 3

    @property
    def depth(self) -> int:
        """As in its name: convs and the classifier, shortcuts not counted.

        >>> get_architecture("cifar_resnet34").depth
        34
        """
        return (3 if self.is_bottleneck else 2) * sum(self.depths) + 2

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._slots())

    def _slots(self) -> Iterator[Slot]:
        channels = 64 if self.is_bottleneck else self.widths[0]  # of the stem
        yield from _conv_and_norm(0, 0, 1, (channels, 3, self.stem_kernel, self.stem_kernel))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            for block in range(depth):
                for conv, shape in enumerate(self._convs(stage, channels, width), start=1):
                    yield from _conv_and_norm(stage, block, conv, shape)
                if channels != width:
                    yield from _conv_and_norm(stage, block, 0, (width, channels, 1, 1))
                channels = width

    def _convs(self, stage: int, channels: int, width: int) -> tuple[tuple[int, ...], ...]:
        if not self.is_bottleneck:
            return (width, channels, 3, 3), (width, width, 3, 3)
        inner = self.inner[stage - 1]
        return (inner, channels, 1, 1), (inner, inner // self.groups, 3, 3), (width, inner, 1, 1)


def _conv_and_norm(stage: int, block: int, conv: int, shape: tuple[int, ...]) -> Iterator[Slot]:
    yield Slot(stage, block, conv, False, "weight", shape)
    for leaf in NORM_LEAVES:
        yield Slot(stage, block, conv, True, leaf, () if leaf == NUM_BATCHES_TRACKED else shape[:1])


def _bottleneck(name: str, depths: tuple[int, ...], inner: int, groups: int = 1) -> Architecture:
    return Architecture(name, depths, (256, 512, 1024, 2048), tuple(inner * factor for factor in (1, 2, 4, 8)), groups)


_PLAIN = (
    Architecture("resnet18", (2, 2, 2, 2), (64, 128, 256, 512)),
    Architecture("resnet34", (3, 4, 6, 3), (64, 128, 256, 512)),
    _bottleneck("resnet50", (3, 4, 6, 3), 64),
    _bottleneck("resnet101", (3, 4, 23, 3), 64),
    _bottleneck("resnet152", (3, 8, 36, 3), 64),
    _bottleneck("wide_resnet50_2", (3, 4, 6, 3), 128),
    _bottleneck("wide_resnet101_2", (3, 4, 23, 3), 128),
    _bottleneck("resnext50_32x4d", (3, 4, 6, 3), 128, groups=32),
    _bottleneck("resnext101_32x8d", (3, 4, 23, 3), 256, groups=32),
    _bottleneck("resnext101_64x4d", (3, 4, 23, 3), 256, groups=64),
)
ARCHITECTURES = {
    each.name: each
    for each in (
        *_PLAIN,
        *(replace(plain, name=f"cifar_{plain.name}", stem_kernel=3) for plain in _PLAIN),
        Architecture("narrow_resnet", (1, 1, 1, 1), (24, 48, 96, 192)),
    )
}


def get_architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        near = did_you_mean(name, ARCHITECTURES)
        raise UserError(f"there is no architecture {name!r}{near} (known: {', '.join(ARCHITECTURES)})")
    return ARCHITECTURES[name]
