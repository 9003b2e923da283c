"""A contact sheet: images with boxes and mask outlines drawn to the pixel, for a person to look at."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ssql_det.checkdata.findings import AnnotatedImage
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write

Canvas = NDArray[np.uint8]

_CELL = 644
_MOST_PICTURES = 100
_COLOURS = ((60, 76, 231), (113, 204, 46), (219, 152, 52), (18, 156, 243), (182, 89, 155), (156, 188, 26))  # BGR


def parse_draw_option(count: str, out: str) -> int:
    """The number of pictures asked for, once the number and the file are known to be fit."""
    path = Path(out)
    if not count.isdecimal() or not 1 <= int(count[:6]) <= _MOST_PICTURES:
        raise UserError(f"--draw wants a number from 1 to {_MOST_PICTURES} and a file, got {count!r}")
    if path.suffix.lower() != ".png":
        raise UserError(f"--draw writes a PNG, but {out} is not called one; write --draw {count} sheet.png")
    if not path.parent.is_dir():
        raise UserError(f"--draw: there is no folder {path.parent} to write {path.name} into")
    return int(count)


def draw_contact_sheet(pictures: Sequence[AnnotatedImage], count: int, out: str | os.PathLike[str]) -> None:
    """Write ``count`` pictures, evenly spread over the data set, as one PNG."""
    if not pictures:
        raise UserError("there is no image to draw")
    if Path(out).resolve() in {picture.path.resolve() for picture in pictures}:
        raise UserError(f"{out} is an image of the data set; name another file for the contact sheet")
    chosen = [pictures[index * len(pictures) // count] for index in range(min(count, len(pictures)))]
    columns = math.ceil(math.sqrt(len(chosen)))
    sheet = np.full((_CELL * math.ceil(len(chosen) / columns), _CELL * columns, 3), 255, np.uint8)
    for number, picture in enumerate(chosen):
        top, left = (_CELL * place for place in divmod(number, columns))
        cell = draw_annotations(picture)
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    with atomic_write(out) as file:
        file.write(cv2.imencode(".png", sheet)[1].tobytes())


def draw_annotations(picture: AnnotatedImage, enlarged_to: int = _CELL - 4) -> Canvas:
    """The picture enlarged by a whole factor, or reduced to fit, with its annotations on the pixels' edges."""
    image = cv2.imread(str(picture.path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"cannot draw {picture.path}: it is missing or not an image")
    scale = (_CELL - 4) / max(image.shape[:2])
    scale = max(math.floor(enlarged_to / max(image.shape[:2])), 1) if scale > 1 else scale
    height, width = image.shape[:2]
    kind = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    canvas: Any = cv2.resize(image, size, interpolation=kind)
    for number, segmentation in enumerate(picture.masks):
        if segmentation is not None:
            small = _decoded(segmentation, height, width)
            mask = cv2.resize(small, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, outlines, -1, _COLOURS[number % len(_COLOURS)], 1)
    for number, (box, label) in enumerate(zip(picture.boxes, picture.labels, strict=True)):
        x0, y0, x1, y1 = (round(min(max(value * scale, -_CELL), 2 * _CELL)) for value in box)
        colour = _COLOURS[number % len(_COLOURS)]
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
        cv2.putText(canvas, label, (x0 + 2, max(y0 - 3, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
    return np.asarray(canvas, np.uint8)


def _decoded(segmentation: Any, height: int, width: int) -> Canvas:
    if isinstance(segmentation, dict):
        runs = segmentation
        if isinstance(runs["counts"], list):
            runs = coco_mask.frPyObjects(runs, height, width)
    else:
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return np.asarray(coco_mask.decode(runs), np.uint8)
