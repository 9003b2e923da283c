"""Residual networks (He et al., CVPR 2016), stage by stage: a stem, then ``res2`` to ``res5``.

A conv's norm is its child ``norm``. Each stage after the first halves the resolution, unless it is dilated. Stages
after the last output feature are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from ...config import CfgNode
from ...layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from ...layers.batch_norm import NormFactory
from .backbone import Backbone
from .build import BACKBONE_REGISTRY

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

Norm = str | NormFactory
ResNetBlockBase = CNNBlockBase

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: Norm, **options: Any) -> Conv2d:
    """A conv with "same" padding, without bias, with a norm."""
    padding = kernel_size // 2 * options.get("dilation", 1)
    norm_layer = get_norm(norm, out_channels)
    return Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False, norm=norm_layer, **options)


class _ResidualBlock(CNNBlockBase):
    """``relu(branch(x) + shortcut(x))``; the shortcut is a conv only if the channels change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        projects = in_channels != out_channels
        self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride) if projects else None

    def _branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self._branch(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)

    def _fill(self, *convs: Conv2d) -> None:
        for conv in convs if self.shortcut is None else (*convs, self.shortcut):
            c2_msra_fill(conv)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convs, as in ResNet-18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)
        self._fill(self.conv1, self.conv2)

    def _branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu_(self.conv1(x)))
        return out


class BottleneckBlock(_ResidualBlock):
    """Convs 1x1, 3x3, 1x1, as in ResNet-50 and deeper; the 3x3 has the stride, or the first 1x1 (MSRA's models)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.conv1 = _conv(in_channels, width, 1, norm, stride=first)
        self.conv2 = _conv(width, width, 3, norm, stride=second, groups=num_groups, dilation=dilation)
        self.conv3 = _conv(width, out_channels, 1, norm)
        self._fill(self.conv1, self.conv2, self.conv3)

    def _branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))
        return out


class BasicStem(CNNBlockBase):
    """A 7x7 conv and a max-pool, with a total stride of 4."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, stride=4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2)
        c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages of blocks; the outputs are ``out_features``, or the last stage.

    >>> stage = ResNet.make_stage(BasicBlock, 2, in_channels=64, out_channels=64, stride_per_block=[1, 1])
    >>> ResNet(BasicStem(), [stage], out_features=["res2"])(torch.zeros(1, 3, 32, 32))["res2"].shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        names = [f"res{index}" for index in range(2, 2 + len(stages))]
        if out_features is not None:  # unused stages would cost memory, and DDP would miss their gradients
            last = max((names.index(wanted) for wanted in out_features if wanted in names), default=-1)
            names = names[: last + 1]
        stride, channels = stem.stride, stem.out_channels
        for name, blocks in zip(names, stages, strict=False):
            assert blocks, f"{name} has no blocks"
            assert all(isinstance(block, CNNBlockBase) for block in blocks), blocks
            self.add_module(name, nn.Sequential(*blocks))
            stride *= math.prod(block.stride for block in blocks)
            channels = blocks[-1].out_channels
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels
        self.stage_names = tuple(names)
        self.stages = [getattr(self, name) for name in names]
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)  # Goyal et al., "Accurate, Large Minibatch SGD"
        children = [name for name, _ in self.named_children()]
        self._out_features = [children[-1]] if out_features is None else out_features
        assert self._out_features
        assert all(name in children for name in self._out_features), f"Available children: {', '.join(children)}"
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        assert x.dim() == 4, f"images must be [N, C, H, W], not {tuple(x.shape)}"
        x = self.stem(x)
        outputs = {"stem": x} if "stem" in self._out_features else {}
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = stage(x)
            if name in self._out_features:  # others are freed
                outputs[name] = x
        if "linear" in self._out_features:
            outputs["linear"] = self.linear(torch.flatten(self.avgpool(x), 1))
        return outputs

    def freeze(self, freeze_at: int = 0) -> ResNet:
        """Freeze the first stages: 1 freezes the stem, 2 the stem and ``res2``."""
        if freeze_at >= 1:
            self.stem.freeze()
        for stage in self.stages[: max(freeze_at - 1, 0)]:
            for block in stage:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[CNNBlockBase]:
        """A list of blocks. An argument ``x_per_block`` lists the blocks' ``x``; others are the same for all."""
        blocks = []
        for index in range(num_blocks):
            own = {}
            for name, value in kwargs.items():
                short = name.removesuffix("_per_block")
                if short != name:
                    assert len(value) == num_blocks, f"{name} must have {num_blocks} values, one for each block"
                    assert short not in kwargs, f"make_stage has {name} and {short}: give one of them"
                own[short] = value if short == name else value[index]
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """The four stages of a ResNet of this depth, for a stem of 64 channels; ``kwargs`` go to every block."""
        is_basic = depth < 50
        widths = (64, 128, 256, 512) if is_basic else (256, 512, 1024, 2048)
        stages = []
        for count, inner, outer in zip(_BLOCKS_PER_STAGE[depth], (64, *widths), widths, strict=False):
            strides = [1 if outer == widths[0] else 2] + [1] * (count - 1)
            own = kwargs if is_basic else {**kwargs, "bottleneck_channels": outer // 4}
            kind = block_class or (BasicBlock if is_basic else BottleneckBlock)
            stages.append(
                make_stage(kind, count, in_channels=inner, out_channels=outer, stride_per_block=strides, **own)
            )
        return stages


make_stage = ResNet.make_stage


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The ResNet that ``MODEL.RESNETS`` describes; each stage is twice as wide as the one before."""
    node = cfg.MODEL.RESNETS
    assert node.RES5_DILATION in (1, 2), f"res5_dilation cannot be {node.RES5_DILATION}."
    is_basic = node.DEPTH in (18, 34)
    if is_basic:
        for key, value in (("RES2_OUT_CHANNELS", 64), ("RES5_DILATION", 1), ("NUM_GROUPS", 1)):
            assert node[key] == value, f"Must set MODEL.RESNETS.{key} = {value} for R18/R34"
    assert input_shape.channels is not None
    stem = BasicStem(input_shape.channels, node.STEM_OUT_CHANNELS, node.NORM)
    stages = []
    in_channels = node.STEM_OUT_CHANNELS
    for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[node.DEPTH]):
        widening = 2**index
        dilation = node.RES5_DILATION if index == 3 else 1
        first_stride = 1 if index == 0 or dilation == 2 else 2
        options: dict[str, Any] = {"stride_per_block": [first_stride] + [1] * (num_blocks - 1), "norm": node.NORM}
        if not is_basic:
            options |= {
                "bottleneck_channels": node.NUM_GROUPS * node.WIDTH_PER_GROUP * widening,
                "num_groups": node.NUM_GROUPS,
                "stride_in_1x1": node.STRIDE_IN_1X1,
                "dilation": dilation,
            }
        block_class = BasicBlock if is_basic else BottleneckBlock
        out_channels = node.RES2_OUT_CHANNELS * widening
        stages.append(
            make_stage(block_class, num_blocks, in_channels=in_channels, out_channels=out_channels, **options)
        )
        in_channels = out_channels
    return ResNet(stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
