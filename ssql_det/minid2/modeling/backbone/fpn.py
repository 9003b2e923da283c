"""Feature pyramid network (Lin et al., CVPR 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from ...config import CfgNode
from ...layers import Conv2d, ShapeSpec, get_norm
from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import Norm, build_resnet_backbone

__all__ = ["FPN", "build_resnet_fpn_backbone"]


class FPN(Backbone):
    """Maps bottom-up features, finest first, to ``p2``, ``p3``, ...; level i has stride 2**i.

    A level is the sum of a 1x1 lateral conv and the upsampled coarser level, followed by a 3x3 output conv. A
    ``top_block`` adds ``num_levels`` coarser levels, computed from its ``in_feature``.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: Norm = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        assert isinstance(bottom_up, Backbone)
        assert in_features, in_features
        assert fuse_type in ("avg", "sum"), fuse_type
        shapes = bottom_up.output_shape()
        strides: list[Any] = [shapes[name].stride for name in in_features]
        assert all(coarse == 2 * fine for fine, coarse in pairwise(strides)), f"Strides {strides} do not double"
        levels = [int(math.log2(stride)) for stride in strides]
        lateral_convs, output_convs = [], []
        for level, name in zip(levels, in_features, strict=True):
            lateral = Conv2d(shapes[name].channels, out_channels, 1, bias=norm == "", norm=get_norm(norm, out_channels))
            output = Conv2d(
                out_channels, out_channels, 3, padding=1, bias=norm == "", norm=get_norm(norm, out_channels)
            )
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            lateral_convs.append(lateral)
            output_convs.append(output)
        self.lateral_convs = lateral_convs[::-1]  # coarse to fine, the order of use
        self.output_convs = output_convs[::-1]
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up
        if top_block is not None:
            levels += range(levels[-1] + 1, levels[-1] + 1 + int(top_block.num_levels))  # type: ignore[arg-type]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        bottom_up = self.bottom_up(x)
        results: list[Tensor] = []
        merged: Tensor | None = None
        for name, lateral, output in zip(
            reversed(self.in_features), self.lateral_convs, self.output_convs, strict=True
        ):
            own = lateral(bottom_up[name])
            merged = own if merged is None else self._fuse(own, F.interpolate(merged, scale_factor=2.0))
            results.insert(0, output(merged))
        if self.top_block is not None:
            source = self.top_block.in_feature
            features = {**dict(zip(self._out_features, results, strict=False)), **bottom_up}
            results.extend(self.top_block(features[source]))
        return dict(zip(self._out_features, results, strict=True))

    def _fuse(self, lateral: Tensor, upsampled: Tensor) -> Tensor:
        total = lateral + upsampled
        return total / 2 if self._fuse_type == "avg" else total


class LastLevelMaxPool(nn.Module):
    """``p6``: ``p5`` subsampled by 2."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The FPN of ``MODEL.FPN`` on the ResNet of ``MODEL.RESNETS``, with ``p6``."""
    node = cfg.MODEL.FPN
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=node.IN_FEATURES,
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=node.FUSE_TYPE,
    )
