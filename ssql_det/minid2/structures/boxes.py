"""Boxes ``(x0, y0, x1, y1)`` in float32 and continuous coordinates: a width is ``x1 - x0``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch
from torch import Tensor


@unique
class BoxMode(IntEnum):
    """The format of a box; the values are those of Detectron2's data set dicts."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: Any, from_mode: BoxMode, to_mode: BoxMode) -> Any:
        """Convert a box (list, tuple) or boxes (array or tensor, [N, 4]) to another mode, keeping the type.

        >>> BoxMode.convert([1.0, 2.0, 3.0, 4.0], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        [1.0, 2.0, 4.0, 6.0]
        """
        if from_mode == to_mode:
            return box
        sign = {(BoxMode.XYWH_ABS, BoxMode.XYXY_ABS): 1, (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS): -1}.get(
            (from_mode, to_mode)
        )
        if sign is None:
            raise NotImplementedError(f"minid2 cannot convert boxes from {from_mode!r} to {to_mode!r}")
        if isinstance(box, (list, tuple)):
            assert len(box) == 4, f"a single box has 4 numbers, got {len(box)}"
            kind: type = type(box)
            return kind(BoxMode.convert(torch.tensor(box)[None], from_mode, to_mode)[0].tolist())
        boxes = box.copy() if isinstance(box, np.ndarray) else box.clone()
        boxes[:, 2:] += sign * boxes[:, :2]
        return boxes


class Boxes:
    """N boxes as a float32 tensor [N, 4] in ``tensor``; indexed like a tensor.

    >>> Boxes([[0, 0, 10, 5]]).area()
    tensor([50.])
    """

    def __init__(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2, tensor.size()
        assert tensor.size(-1) == 4, tensor.size()
        self.tensor: Tensor = tensor

    def clone(self) -> Boxes:
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> Boxes:
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def area(self) -> Tensor:
        width, height = self._sides()
        return width * height

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clip to an image of (height, width), in place."""
        assert torch.isfinite(self.tensor).all(), "boxes to be clipped are infinite or NaN"
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x, y), dim=-1).flatten(1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """A mask of the boxes with both sides longer than ``threshold``."""
        width, height = self._sides()
        return (width > threshold) & (height > threshold)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: float = 0) -> Tensor:
        """A mask of the boxes that exceed an image of (height, width) by at most the threshold."""
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(-1)
        starts_inside = (x0 >= -boundary_threshold) & (y0 >= -boundary_threshold)
        return starts_inside & (x1 < width + boundary_threshold) & (y1 < height + boundary_threshold)

    def get_centers(self) -> Tensor:
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> Boxes:
        """Concatenate a list of boxes; the result is always a copy."""
        assert all(isinstance(boxes, Boxes) for boxes in boxes_list)
        return cls(torch.cat([boxes.tensor for boxes in boxes_list])) if boxes_list else cls(torch.empty(0))

    def __getitem__(self, item: Any) -> Boxes:
        """Index by an integer (one box), a slice, or a vector of integers or booleans."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        chosen = self.tensor[item]
        assert chosen.dim() == 2, f"{item} does not choose boxes"
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def _sides(self) -> tuple[Tensor, Tensor]:
        x0, y0, x1, y1 = self.tensor.unbind(-1)
        return x1 - x0, y1 - y0


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """The intersection areas [N, M] of N boxes with M boxes."""
    first, second = boxes1.tensor[:, None], boxes2.tensor
    sides = torch.min(first[..., 2:], second[:, 2:]) - torch.max(first[..., :2], second[:, :2])
    return sides.clamp_(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """The IoU [N, M] of N boxes with M boxes; 0 without intersection."""
    shared = pairwise_intersection(boxes1, boxes2)
    return _ratio(shared, boxes1.area()[:, None] + boxes2.area() - shared)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """The intersection over the area of the second box, [N, M]."""
    return _ratio(pairwise_intersection(boxes1, boxes2), boxes2.area())


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """The IoU [N] of corresponding boxes; NaN for two empty ones."""
    assert len(boxes1) == len(boxes2), f"the lists have different lengths: {len(boxes1)} and {len(boxes2)} boxes"
    first, second = boxes1.tensor, boxes2.tensor
    sides = torch.min(first[:, 2:], second[:, 2:]) - torch.max(first[:, :2], second[:, :2])
    shared = sides.clamp(min=0).prod(dim=1)
    return shared / (boxes1.area() + boxes2.area() - shared)


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """The distances [N, M, 4] of N points [N, 2] to the left, top, right and bottom of M boxes, positive inside."""
    x, y = points[:, None].unbind(-1)
    x0, y0, x1, y1 = boxes.tensor[None].unbind(-1)
    return torch.stack([x - x0, y - y0, x1 - x, y1 - y], dim=2)


def _ratio(shared: Tensor, whole: Tensor) -> Tensor:
    return torch.where(shared > 0, shared / whole, torch.zeros(1, dtype=shared.dtype, device=shared.device))
