"""Resizing, which fvcore does not do as Detectron2 does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import Transform
from numpy.typing import NDArray
from PIL import Image

__all__ = ["ResizeTransform"]

Array = NDArray[Any]

NEAREST = Image.Resampling.NEAREST.value
BILINEAR = Image.Resampling.BILINEAR.value
_MODES = {NEAREST: "nearest", BILINEAR: "bilinear", Image.Resampling.BICUBIC.value: "bicubic"}


class ResizeTransform(Transform):
    """Resize from (h, w) to (new_h, new_w): uint8 with PIL, which antialiases, other dtypes with torch.

    >>> ResizeTransform(480, 640, 800, 1067).apply_image(np.zeros((480, 640, 3), np.uint8)).shape
    (800, 1067, 3)
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w = h, w
        self.new_h, self.new_w = new_h, new_w
        self.interp = BILINEAR if interp is None else interp

    def apply_image(self, img: Array, interp: int | None = None) -> Array:
        """[H, W] or [H, W, C]."""
        assert img.shape[:2] == (self.h, self.w), f"an image of {img.shape[:2]}, not {(self.h, self.w)}"
        interp = self.interp if interp is None else interp
        if img.dtype != np.uint8:
            return self._by_torch(img, _MODES[interp])
        is_flat = img.ndim == 3 and img.shape[2] == 1  # PIL has no mode for [H, W, 1]
        image = Image.fromarray(img[:, :, 0] if is_flat else img)
        resized = np.array(image.resize((self.new_w, self.new_h), interp))  # a copy, because PIL's buffer is read-only
        return resized[:, :, None] if is_flat else resized

    def apply_coords(self, coords: Array) -> Array:
        # in place and in their own dtype, so that integers stay integers
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: Array) -> Array:
        return self.apply_image(segmentation, interp=NEAREST)

    def inverse(self) -> ResizeTransform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)

    def _by_torch(self, img: Array, mode: str) -> Array:
        pixels = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)
        size = (self.new_h, self.new_w)
        resized = F.interpolate(
            pixels.permute(2, 0, 1)[None], size, mode=mode, align_corners=None if mode == "nearest" else False
        )
        return resized[0].permute(1, 2, 0).reshape(*size, *img.shape[2:]).numpy()
