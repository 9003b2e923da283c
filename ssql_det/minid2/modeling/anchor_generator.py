"""Anchors: boxes of fixed sizes and aspect ratios at every location of a feature map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import CfgNode, configurable
from ..layers import ShapeSpec
from ..structures import Boxes
from ..utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")


class BufferList(nn.Module):
    """Buffers that are not saved in the state dict."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        for index, buffer in enumerate(buffers):
            self.register_buffer(str(index), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(buffer for buffer in self._buffers.values() if buffer is not None)


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of every size (square root of the area) and aspect ratio (height / width), for each feature map.

    A single list of sizes or ratios is used for all maps. ``offset`` shifts the centres by a fraction of the stride.
    """

    box_dim = 4

    @configurable
    def __init__(
        self, *, sizes: Sequence[Any], aspect_ratios: Sequence[Any], strides: Sequence[int], offset: float = 0.5
    ) -> None:
        super().__init__()
        self.strides = strides
        self.num_features = len(strides)
        per_map = zip(
            _for_each_map(sizes, self.num_features, "sizes"),
            _for_each_map(aspect_ratios, self.num_features, "aspect_ratios"),
            strict=True,
        )
        self.cell_anchors = BufferList([self.generate_cell_anchors(*each) for each in per_map])
        self.offset = offset
        assert 0.0 <= offset < 1.0, offset

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.ANCHOR_GENERATOR
        strides = [each.stride for each in input_shape]
        return {"sizes": node.SIZES, "aspect_ratios": node.ASPECT_RATIOS, "strides": strides, "offset": node.OFFSET}

    @property
    def num_anchors(self) -> list[int]:
        """Anchors at every location, for each feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    num_cell_anchors = num_anchors

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> Tensor:
        """Anchors centred at the origin, [sizes * ratios, 4]; ratios vary fastest."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2.0 / ratio)
                height = ratio * width
                anchors.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
        return torch.tensor(anchors)

    def forward(self, features: Sequence[Tensor]) -> list[Boxes]:
        """All anchors of each map, in the order of locations: [H * W * anchors, 4]."""
        return [
            Boxes(self._grid(each.shape[-2:], stride, cells))
            for each, stride, cells in zip(features, self.strides, self.cell_anchors, strict=True)
        ]

    def _grid(self, size: Sequence[int], stride: int, cells: Tensor) -> Tensor:
        rows, columns = (
            torch.arange(self.offset * stride, side * stride, step=stride, dtype=torch.float32, device=cells.device)
            for side in size
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        return (shifts + cells).reshape(-1, 4)


def build_anchor_generator(cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> nn.Module:
    """The generator that ``MODEL.ANCHOR_GENERATOR.NAME`` names."""
    generator: nn.Module = ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
    return generator


def _for_each_map(values: Sequence[Any], maps: int, name: str) -> list[Sequence[float]]:
    assert isinstance(values, Sequence), f"{name} of anchors must be a list, not {values!r}"
    assert len(values), f"there are no {name} of anchors"
    if not isinstance(values[0], Sequence):
        return [values] * maps
    if len(values) == 1:
        return list(values) * maps
    assert len(values) == maps, f"anchor generator has {len(values)} lists of {name} for {maps} feature maps"
    return list(values)
