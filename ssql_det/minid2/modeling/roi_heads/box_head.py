"""Box heads: convs and linear layers between the pooled features and the predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import Tensor, nn

from ...config import CfgNode, configurable
from ...layers import Conv2d, ShapeSpec, get_norm
from ...utils.registry import Registry

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead", "build_box_head"]

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convs ``conv1``, ... (with norm and ReLU), then linear layers ``fc1``, ... (with ReLU)."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm: str = ""
    ) -> None:
        super().__init__()
        assert len(conv_dims) + len(fc_dims) > 0
        assert input_shape.channels is not None
        channels = input_shape.channels
        for index, width in enumerate(conv_dims, start=1):
            norm = get_norm(conv_norm, width)
            conv = Conv2d(channels, width, 3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU())
            self.add_module(f"conv{index}", conv)
            channels = width
        self._shape = ShapeSpec(channels=channels, height=input_shape.height, width=input_shape.width)
        features = math.prod((channels, input_shape.height or 1, input_shape.width or 1))
        for index, width in enumerate(fc_dims, start=1):
            if index == 1:
                self.add_module("flatten", nn.Flatten())
            self.add_module(f"fc{index}", nn.Linear(features, width))
            self.add_module(f"fc_relu{index}", nn.ReLU())
            self._shape = ShapeSpec(channels=width)
            features = width
        for layer in self:
            if isinstance(layer, Conv2d):
                c2_msra_fill(layer)
            elif isinstance(layer, nn.Linear):
                c2_xavier_fill(layer)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [node.CONV_DIM] * node.NUM_CONV,
            "fc_dims": [node.FC_DIM] * node.NUM_FC,
            "conv_norm": node.NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x

    @property
    def output_shape(self) -> ShapeSpec:
        return self._shape


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The head that ``MODEL.ROI_BOX_HEAD.NAME`` names."""
    head: nn.Module = ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
    return head
