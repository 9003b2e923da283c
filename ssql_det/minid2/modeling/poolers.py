"""Pooling of RoI features, each from the pyramid level that fits the box size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from ..layers import ROIAlign, cat, nonzero_tuple
from ..structures import Boxes

__all__ = ["ROIPooler"]


def assign_boxes_to_levels(
    box_lists: Sequence[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> Tensor:
    """The level of each box of all images, counted from ``min_level`` (Lin et al., CVPR 2017, eq. 1).

    A box of the canonical size belongs to the canonical level, one of twice the size to the next.
    """
    sizes = torch.sqrt(cat([boxes.area() for boxes in box_lists]))
    levels = torch.floor(canonical_level + torch.log2(sizes / canonical_box_size + 1e-8))
    return levels.clamp(min=min_level, max=max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: Sequence[Boxes]) -> Tensor:
    """The boxes of all images in ROIAlign's format [M, 5], with the image index first."""
    boxes = torch.cat([each.tensor for each in box_lists])
    counts = torch.tensor([len(each) for each in box_lists], device=boxes.device)
    images = torch.arange(len(box_lists), dtype=boxes.dtype, device=boxes.device).repeat_interleave(counts)
    return torch.cat([images[:, None], boxes], dim=1)


class ROIPooler(nn.Module):
    """A pooling layer for each feature map; ``scales`` are 1 / stride, finest first, each half the previous one.

    ``canonical_box_size`` and ``canonical_level`` are those of the FPN paper: a box of 224 pixels belongs to ``p4``.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size = (height, width)
        if pooler_type in ("ROIAlign", "ROIAlignV2"):
            aligned = pooler_type == "ROIAlignV2"
            poolers = [ROIAlign((height, width), scale, sampling_ratio, aligned) for scale in scales]
        elif pooler_type == "ROIPool":
            poolers = [RoIPool((height, width), scale) for scale in scales]
        else:
            raise ValueError(f"Unknown pooler type: {pooler_type}")
        self.level_poolers = nn.ModuleList(poolers)
        levels = [-math.log2(scale) for scale in scales]
        assert all(level.is_integer() for level in (levels[0], levels[-1])), (
            f"strides must be powers of 2: scales are {scales}"
        )
        self.min_level, self.max_level = int(levels[0]), int(levels[-1])
        assert len(scales) == self.max_level - self.min_level + 1, f"each scale must be half the previous one: {scales}"
        assert 0 <= self.min_level <= self.max_level
        assert canonical_box_size > 0
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool features [M, C, *output_size] of the M boxes of N images from feature maps [N, C, H, W]."""
        assert len(x) == len(self.level_poolers), f"{len(x)} feature maps for {len(self.level_poolers)} poolers"
        assert len(box_lists) == len(x[0]), f"boxes of {len(box_lists)} images, features of {len(x[0])}"
        if not box_lists:
            return x[0].new_zeros(0, x[0].shape[1], *self.output_size)
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            pooled: Tensor = self.level_poolers[0](x[0], rois)
            return pooled
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        output = x[0].new_zeros(len(rois), x[0].shape[1], *self.output_size)
        for level, (features, pooler) in enumerate(zip(x, self.level_poolers, strict=True)):
            (chosen,) = nonzero_tuple(levels == level)
            output.index_put_((chosen,), pooler(features, rois[chosen]))
        return output
