"""The augmentations of the standard recipes; they use NumPy's global generator."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, VFlipTransform

from .augmentation import Array, Augmentation
from .transform import BILINEAR, ResizeTransform

__all__ = ["RandomFlip", "ResizeShortestEdge"]


class RandomFlip(Augmentation):
    """Flip horizontally or vertically with a probability."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError(f"RandomFlip must be either horizontal or vertical, got {horizontal=}, {vertical=}")
        self.prob = prob
        self.horizontal, self.vertical = horizontal, vertical

    def get_transform(self, image: Array) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class ResizeShortestEdge(Augmentation):
    """Resize the shorter side to a random length, or to less if the longer side would exceed ``max_size``.

    The length is one of the given ones (``choice``) or any between two given ones (``range``). 0 means no change.

    >>> ResizeShortestEdge([640, 640], 1333, "choice").get_transform(np.zeros((480, 600, 3)))
    ResizeTransform(h=480, w=600, new_h=640, new_w=800, interp=...)
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        assert sample_style in ("range", "choice"), f"sample_style must be 'range' or 'choice', got '{sample_style}'"
        lengths = (short_edge_length,) * 2 if isinstance(short_edge_length, int) else short_edge_length
        self.is_range = sample_style == "range"
        assert not self.is_range or len(lengths) == 2, f"a range has two ends, got {lengths}"
        self.short_edge_length = lengths
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: Array) -> Transform:
        height, width = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new = self.get_output_shape(height, width, int(size), self.max_size)
        return ResizeTransform(height, width, *new, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """(height, width), both rounded half up.

        >>> ResizeShortestEdge.get_output_shape(480, 640, 800, 1333)
        (800, 1067)
        """
        # scaled twice instead of once, because the second rounding affects the result
        scale = short_edge_length / min(oldh, oldw)
        height, width = (short_edge_length, scale * oldw) if oldh < oldw else (scale * oldh, short_edge_length)
        longer = max(height, width)
        if longer > max_size:
            height, width = height * (max_size / longer), width * (max_size / longer)
        return int(height + 0.5), int(width + 0.5)
