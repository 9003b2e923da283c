"""The detections of an image, and the files of a command that detects: COCO's JSON, and pictures as PNG."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ssql_det.core.files import atomic_write
from ssql_det.images.masks import Masks, Rle, encode_rle
from ssql_det.images.reading import Pixels

_PANELS = "panels"  # key of a PNG's text with the names and widths of its panels


@dataclass(frozen=True)
class Detection:
    """An object found in an image."""

    class_index: int
    box: tuple[float, float, float, float]  # x, y, width, height in pixels
    score: float
    mask: Rle | None = None  # None: the detector has no masks


def collect_detections(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int64], masks: Masks | None = None
) -> list[Detection]:
    """The detections of one image from boxes [N, 4] (x0, y0, x1, y1), scores [N], classes [N] and masks [N, height,
    width], which are encoded.

    >>> collect_detections(np.array([[1, 2, 5, 8]]), np.array([0.5]), np.array([7]))
    [Detection(class_index=7, box=(1, 2, 4, 6), score=0.5, mask=None)]
    """
    encoded = [None] * len(boxes) if masks is None else [encode_rle(mask) for mask in masks]
    return [
        Detection(index, (x0, y0, x1 - x0, y1 - y0), score, mask)
        for (x0, y0, x1, y1), score, index, mask in zip(
            boxes.tolist(), scores.tolist(), classes.tolist(), encoded, strict=True
        )
    ]


def save_detections(
    path: str | os.PathLike[str],
    images: Sequence[Path],
    detections: Sequence[Sequence[Detection]],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> None:
    """Write the detections of these images in the format of COCO's annotation files, with a score per annotation.

    ``class_names`` and ``category_ids`` give the name and the COCO id of each class index.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, (_, found) in enumerate(zip(images, detections, strict=True), start=1):
        for each in found:
            segmentation = {} if each.mask is None else {"segmentation": each.mask}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[each.class_index],
                    "bbox": list(each.box),
                    "score": each.score,
                    **segmentation,
                }
            )
    content = {
        "images": [{"id": image_id, "file_name": image.name} for image_id, image in enumerate(images, start=1)],
        "categories": [{"id": each, "name": name} for each, name in zip(category_ids, class_names, strict=True)],
        "annotations": annotations,
    }
    with atomic_write(path, "w") as file:
        json.dump(content, file)


def save_picture(path: str | os.PathLike[str], panels: Sequence[Pixels], names: Sequence[str] = ()) -> None:
    """Write panels of the same height side by side as a PNG. With ``names``, :func:`read_panels` tells them apart.

    >>> save_picture("drawn.png", [np.zeros((10, 20, 3), np.uint8), np.zeros((10, 30, 3), np.uint8)], ("FP", "4w4a"))
    >>> [(name, panel.shape) for name, panel in read_panels("drawn.png").items()]
    [('FP', (10, 20, 3)), ('4w4a', (10, 30, 3))]
    """
    encoded, texts = io.BytesIO(), PngInfo()
    if names:
        widths = [[name, panel.shape[1]] for name, panel in zip(names, panels, strict=True)]
        texts.add_text(_PANELS, json.dumps(widths))
    Image.fromarray(np.hstack(panels)).save(encoded, format="PNG", pnginfo=texts)
    with atomic_write(path) as file:
        file.write(encoded.getvalue())


def read_panels(path: str | os.PathLike[str]) -> dict[str, Pixels]:
    """The panels of a picture by name; empty if it was saved without names."""
    with Image.open(path) as image:
        widths, pixels = json.loads(getattr(image, "text", {}).get(_PANELS, "[]")), np.asarray(image.convert("RGB"))
    stops = np.cumsum([width for _, width in widths])[:-1]
    return dict(zip((name for name, _ in widths), np.hsplit(pixels, stops), strict=True)) if widths else {}


def encode_jpeg(pixels: Pixels) -> bytes:
    """The bytes of a JPEG file, as pages embed it."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=85)
    return encoded.getvalue()
