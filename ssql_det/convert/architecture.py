"""ResNet architectures as lists of tensors with their positions and shapes; no network is built here.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with the widths and groups of Wide ResNet
(Zagoruyko and Komodakis, 2016) and ResNeXt (Xie et al., 2017) as torchvision has them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ssql_det.core.errors import UserError, did_you_mean

NUM_BATCHES_TRACKED = "num_batches_tracked"  # BatchNorm2d has it, FrozenBatchNorm2d has not
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", NUM_BATCHES_TRACKED)


@dataclass(frozen=True)
class TensorSpec:
    """Where in a ResNet a tensor is, and its shape; what it is called depends on the format.

    ``stage`` 0 is the stem, which has ``conv`` 1 only; in a block, ``conv`` 0 is the shortcut. A norm has the number
    of the conv before it.
    """

    stage: int
    block: int  # of the stage, from 0
    conv: int  # of the block, from 1
    is_norm: bool
    name_in_layer: str  # such as weight or running_mean
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """The depth and the widths of a ResNet.

    >>> len(get_architecture("resnet18").tensors)
    120
    """

    name: str
    depths: tuple[int, ...]  # blocks of each stage
    widths: tuple[int, ...]  # output channels of each stage
    bottleneck_widths: tuple[int, ...] = ()  # channels of each stage's 3x3 convs, if its blocks are bottlenecks
    groups: int = 1  # of the 3x3 convs of bottlenecks
    stem_kernel: int = 7  # height and width of the stem's conv

    @property
    def is_bottleneck(self) -> bool:
        return bool(self.bottleneck_widths)

    @property
    def has_cifar_stem(self) -> bool:
        return self.stem_kernel == 3

    @property
    def depth(self) -> int:
        """As in its name: convs and the classifier, shortcuts not counted.

        >>> get_architecture("cifar_resnet34").depth
        34
        """
        return (3 if self.is_bottleneck else 2) * sum(self.depths) + 2

    @functools.cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors of the backbone, in the order of torchvision's state dict."""
        return tuple(self._iterate_tensors())

    def _iterate_tensors(self) -> Iterator[TensorSpec]:
        in_channels = 64 if self.is_bottleneck else self.widths[0]  # of the first block: the stem's output
        yield from _conv_and_norm(0, 0, 1, (in_channels, 3, self.stem_kernel, self.stem_kernel))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            for block in range(depth):
                for conv, shape in enumerate(self._conv_shapes(stage, in_channels, width), start=1):
                    yield from _conv_and_norm(stage, block, conv, shape)
                if in_channels != width:
                    yield from _conv_and_norm(stage, block, 0, (width, in_channels, 1, 1))
                in_channels = width

    def _conv_shapes(self, stage: int, in_channels: int, width: int) -> tuple[tuple[int, ...], ...]:
        if not self.is_bottleneck:
            return (width, in_channels, 3, 3), (width, width, 3, 3)
        inner = self.bottleneck_widths[stage - 1]
        return (inner, in_channels, 1, 1), (inner, inner // self.groups, 3, 3), (width, inner, 1, 1)


def _conv_and_norm(stage: int, block: int, conv: int, shape: tuple[int, ...]) -> Iterator[TensorSpec]:
    yield TensorSpec(stage, block, conv, False, "weight", shape)
    for name in NORM_TENSORS:
        yield TensorSpec(stage, block, conv, True, name, () if name == NUM_BATCHES_TRACKED else shape[:1])


def _bottleneck(name: str, depths: tuple[int, ...], first_width: int, groups: int = 1) -> Architecture:
    """``first_width``: channels of the 3x3 convs in the first stage."""
    bottleneck_widths = tuple(first_width * factor for factor in (1, 2, 4, 8))
    return Architecture(name, depths, (256, 512, 1024, 2048), bottleneck_widths, groups)


_TORCHVISION_RESNETS = (
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
    architecture.name: architecture
    for architecture in (
        *_TORCHVISION_RESNETS,
        *(replace(resnet, name=f"cifar_{resnet.name}", stem_kernel=3) for resnet in _TORCHVISION_RESNETS),
        Architecture("narrow_resnet", (1, 1, 1, 1), (24, 48, 96, 192)),
    )
}


def get_architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        hint = did_you_mean(name, ARCHITECTURES)
        raise UserError(f"there is no architecture {name!r}{hint} (known: {', '.join(ARCHITECTURES)})")
    return ARCHITECTURES[name]
