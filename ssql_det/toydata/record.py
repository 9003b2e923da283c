"""What is kept of a scene once it is drawn: an encoded image and plain annotations, little enough for a data set."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from ssql_det.toydata.outline import Mask, polygons
from ssql_det.toydata.scenes import Object, Scene

_JPEG_QUALITY = 92


@dataclass(frozen=True)
class ObjectRecord:
    """``box`` is (x0, y0, x1, y1), ends exclusive; ``segmentation`` is COCO's: polygons, or a crowd's run lengths."""

    label: int
    box: tuple[int, int, int, int]
    area: int
    segmentation: Any
    truncated: bool
    occluded: bool
    difficult: bool
    crowd: bool


@dataclass(frozen=True)
class SceneRecord:
    """An encoded image, its size, and what is in it."""

    jpeg: bytes
    height: int
    width: int
    objects: tuple[ObjectRecord, ...]


def record_scene(scene: Scene) -> SceneRecord:
    """Encode the image, outline the masks."""
    height, width = scene.image.shape[:2]
    encoded = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return SceneRecord(encoded.tobytes(), height, width, tuple(_record(each) for each in scene.objects))


def run_lengths(mask: Mask) -> dict[str, Any]:
    """COCO's uncompressed RLE: lengths of runs down the columns, beginning with a run of zeros."""
    column_wise = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(column_wise, prepend=False)).tolist()
    bounds = [0, *changes, len(column_wise)]
    return {"size": list(mask.shape), "counts": [end - start for start, end in pairwise(bounds)]}


def _record(each: Object) -> ObjectRecord:
    return ObjectRecord(
        label=each.label,
        box=each.box,
        area=int(each.mask.sum()),
        segmentation=run_lengths(each.mask) if each.crowd else polygons(each.mask),
        truncated=each.truncated,
        occluded=each.occluded,
        difficult=each.difficult,
        crowd=each.crowd,
    )
