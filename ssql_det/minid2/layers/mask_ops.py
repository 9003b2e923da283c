"""Pasting predicted masks into the image, at the position and size of their boxes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BYTES_PER_FLOAT = 4
GPU_MEM_LIMIT = 1024**3  # bytes of sampled masks at a time


def paste_masks_in_image(masks: Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resample masks [N, M, M] in [0, 1] from their N boxes to boolean masks [N, height, width] of the image.

    With a negative threshold the result is not thresholded, but uint8 from 0 to 255.
    """
    assert masks.shape[-1] == masks.shape[-2], "masks must be square"
    if len(masks) == 0:
        return masks.new_empty((0, *image_shape), dtype=torch.uint8)
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor
    assert len(boxes) == len(masks), boxes.shape
    on_cpu = boxes.device.type == "cpu"
    pasted = masks.new_zeros((len(masks), *image_shape), dtype=torch.bool if threshold >= 0 else torch.uint8)
    for chosen in torch.arange(len(masks), device=boxes.device).chunk(_chunks(len(masks), image_shape, on_cpu)):
        rows, columns = (
            _region(boxes[chosen], image_shape) if on_cpu else (range(image_shape[0]), range(image_shape[1]))
        )
        sampled = _sample(masks[chosen], boxes[chosen], rows, columns)
        values = sampled >= threshold if threshold >= 0 else (sampled * 255).to(torch.uint8)
        pasted[chosen, rows.start : rows.stop, columns.start : columns.stop] = values
    return pasted


def _chunks(count: int, image_shape: tuple[int, int], on_cpu: bool) -> int:
    """The number of chunks: on the CPU one per mask, which is fastest; on a GPU as few as its memory allows."""
    if on_cpu:
        return count
    chunks = math.ceil(count * image_shape[0] * image_shape[1] * BYTES_PER_FLOAT / GPU_MEM_LIMIT)
    assert chunks <= count, f"one mask of {image_shape} takes more than GPU_MEM_LIMIT"
    return chunks


def _region(boxes: Tensor, image_shape: tuple[int, int]) -> tuple[range, range]:
    """The rows and columns of the boxes, with a margin of one pixel."""
    x0, y0 = (boxes[:, :2].amin(dim=0).floor() - 1).clamp(min=0).int().tolist()
    x1, y1 = (boxes[:, 2:].amax(dim=0).ceil() + 1).int().tolist()
    return range(y0, min(y1, image_shape[0])), range(x0, min(x1, image_shape[1]))


def _sample(masks: Tensor, boxes: Tensor, rows: range, columns: range) -> Tensor:
    """Sample each mask at the pixel centres, with bilinear interpolation and zeros outside."""
    x0, y0, x1, y1 = boxes.split(1, dim=1)
    y = torch.arange(rows.start, rows.stop, device=boxes.device, dtype=torch.float32) + 0.5
    x = torch.arange(columns.start, columns.stop, device=boxes.device, dtype=torch.float32) + 0.5
    y = (y - y0) / (y1 - y0) * 2 - 1
    x = (x - x0) / (x1 - x0) * 2 - 1
    shape = (len(masks), len(rows), len(columns))
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    soft = masks if masks.dtype.is_floating_point else masks.float()
    return F.grid_sample(soft[:, None], grid.to(soft.dtype), align_corners=False)[:, 0]
