"""Masks of instances as bitmaps, as polygons, and as small grids within boxes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from ..layers.mask_ops import paste_masks_in_image
from ..layers.roi_align import ROIAlign
from .boxes import Boxes

Polygon = NDArray[np.float64]  # x0, y0, x1, y1, ...

_MIN_BOX_SIDE = 0.1  # avoids a division by zero


def polygons_to_bitmask(polygons: Sequence[Polygon], height: int, width: int) -> NDArray[np.bool_]:
    """Rasterize the union of polygons to a mask [height, width], with COCO's rasterizer."""
    if len(polygons) == 0:  # COCO's rasterizer fails with an empty list
        return np.zeros((height, width), bool)
    decoded: NDArray[np.uint8] = coco.decode(coco.merge(coco.frPyObjects(list(polygons), height, width)))
    return decoded.astype(bool)


def polygon_area(x: Polygon, y: Polygon) -> np.float64:
    """The area by the shoelace formula."""
    return np.float64(0.5) * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def rasterize_polygons_within_box(polygons: Sequence[Polygon], box: NDArray[Any], mask_size: int) -> Tensor:
    """Rasterize polygons within a box to [mask_size, mask_size], the training target of a mask head."""
    width, height = box[2] - box[0], box[3] - box[1]
    ratio = (mask_size / max(width, _MIN_BOX_SIDE), mask_size / max(height, _MIN_BOX_SIDE))
    inside = []
    for polygon in polygons:
        corners = polygon.copy()
        for axis in (0, 1):
            corners[axis::2] = (corners[axis::2] - box[axis]) * ratio[axis]
        inside.append(corners)
    return torch.from_numpy(polygons_to_bitmask(inside, mask_size, mask_size))


class BitMasks:
    """Masks of one image as a boolean tensor [N, H, W] in ``tensor``."""

    def __init__(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, device=torch.device("cpu"))
        tensor = tensor.to(torch.bool)
        assert tensor.dim() == 3, tensor.size()
        self.image_size = tensor.shape[1:]
        self.tensor: Tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: Any) -> BitMasks:
        return BitMasks(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[Polygon]], height: int, width: int) -> BitMasks:
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        return BitMasks(np.stack(masks) if masks else torch.empty(0, height, width))

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop and resize the i-th mask to the i-th box with ROIAlign: [N, mask_size, mask_size]."""
        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
        rois = torch.cat([index, boxes], dim=1).to(self.device)
        align = ROIAlign((mask_size, mask_size), spatial_scale=1.0, sampling_ratio=0, aligned=True)
        return align(self.tensor.float()[:, None], rois)[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes; all zeros for an empty mask."""
        boxes = torch.zeros(len(self), 4)
        for box, mask in zip(boxes, self.tensor, strict=True):
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            if len(rows):
                box[:] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        return Boxes(boxes)

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        assert bitmasks_list
        return type(bitmasks_list[0])(torch.cat([each.tensor for each in bitmasks_list]))


class PolygonMasks:
    """Masks of one image as lists of polygons, in float64 and always on the CPU."""

    def __init__(self, polygons: list[list[Any]]) -> None:
        if not isinstance(polygons, list):
            raise ValueError(f"PolygonMasks need a list of lists of polygons, got a {type(polygons)}")
        self.polygons = [_checked(each) for each in polygons]

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __getitem__(self, item: Any) -> PolygonMasks:
        """Index by an integer, a slice, a list of integers, or a vector of integers or booleans."""
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, Tensor):
            if item.dtype not in (torch.bool, torch.int32, torch.int64):
                raise ValueError(f"Unsupported tensor dtype={item.dtype} for indexing!")
            assert item.dtype != torch.bool or item.dim() == 1, item.shape
            item = (item.nonzero()[:, 0] if item.dtype == torch.bool else item).tolist()
        return PolygonMasks([self.polygons[index] for index in ([item] if isinstance(item, int) else item)])

    def __len__(self) -> int:
        return len(self.polygons)

    def __iter__(self) -> Iterator[list[Polygon]]:
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes; maxima are at least 0, and minima of an instance without polygons are infinite."""
        boxes = torch.zeros(len(self), 4)
        boxes[:, :2] = float("inf")
        for box, polygons in zip(boxes, self.polygons, strict=True):
            for polygon in polygons:
                corners = torch.from_numpy(polygon).view(-1, 2).float()
                box[:2] = torch.min(box[:2], corners.min(dim=0).values)
                box[2:] = torch.max(box[2:], corners.max(dim=0).values)
        return Boxes(boxes)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Rasterize the i-th mask within the i-th box: [N, mask_size, mask_size]."""
        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        grids = [
            rasterize_polygons_within_box(polygons, box, mask_size)
            for polygons, box in zip(self.polygons, boxes.cpu().numpy(), strict=True)
        ]
        return torch.stack(grids).to(boxes.device) if grids else boxes.new_empty(0, mask_size, mask_size).bool()

    def area(self) -> Tensor:
        """The area of each instance, summed over its polygons."""
        return torch.tensor([sum(polygon_area(each[0::2], each[1::2]) for each in polygons) for polygons in self])

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        assert polymasks_list
        return type(polymasks_list[0])(list(itertools.chain.from_iterable(polymasks_list)))


class ROIMasks:
    """Masks [N, M, M] as small grids, each within a box."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() != 3:
            raise ValueError(f"masks must be [N, M, M], not {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device | str) -> ROIMasks:
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: Any) -> ROIMasks:
        return ROIMasks(self.tensor[item])

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)})"

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        return BitMasks(paste_masks_in_image(self.tensor, boxes.tensor, (height, width), threshold=threshold))


def _checked(polygons: Any) -> list[Polygon]:
    if not isinstance(polygons, list):
        raise ValueError(f"an instance must be a list of polygons, got a {type(polygons)}")
    arrays = [np.asarray(each.cpu() if isinstance(each, Tensor) else each).astype(np.float64) for each in polygons]
    for array in arrays:
        if len(array) % 2 != 0 or len(array) < 6:
            raise ValueError(f"{len(array)} numbers are not a polygon, which needs x and y of three corners at least")
    return arrays
