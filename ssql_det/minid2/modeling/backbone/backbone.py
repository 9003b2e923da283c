"""The base class of backbones: named feature maps with their channels and strides, and the padding of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from ...layers import ShapeSpec


class Backbone(nn.Module, ABC):
    """Maps images [N, C, H, W] to ``{name: feature map}``; a subclass sets the attributes below."""

    _out_features: Sequence[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, *args: Any) -> Any: ...

    @property
    def size_divisibility(self) -> int:
        """The number that height and width of images must be divisible by; 0 for none."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Constraints on padding: ``size_divisibility``, ``square_size``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
