"""A contact sheet: images in a grid, with their boxes and mask outlines."""

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
from ssql_det.core.errors import UserError, printable
from ssql_det.core.files import atomic_write

Canvas = NDArray[np.uint8]

_CELL_SIZE = 644  # pixels
_MAX_IMAGES = 100
_COLOURS = ((60, 76, 231), (113, 204, 46), (219, 152, 52), (18, 156, 243), (182, 89, 155), (156, 188, 26))  # BGR


def parse_draw_option(count: str, out: str) -> int:
    """The number of images of ``--draw COUNT OUT``, after checking both values."""
    path = Path(out)
    if not count.isdecimal() or not 1 <= int(count[:6]) <= _MAX_IMAGES:
        raise UserError(f"--draw needs a number from 1 to {_MAX_IMAGES} and a file, got {count!r}")
    if path.suffix.lower() != ".png":
        raise UserError(f"--draw writes a PNG, but {out} does not end in .png; write --draw {count} sheet.png")
    if not path.parent.is_dir():
        raise UserError(f"--draw: there is no folder {path.parent} for {path.name}; make it first")
    return int(count)


def draw_contact_sheet(images: Sequence[AnnotatedImage], count: int, out: str | os.PathLike[str]) -> None:
    """Write a PNG of ``count`` images, evenly spread over the data set."""
    if not images:
        raise UserError("there is no image to draw")
    if Path(out).resolve() in {image.path.resolve() for image in images}:
        raise UserError(f"{out} is an image of the data set; name another file for the contact sheet")
    selected = [images[index * len(images) // count] for index in range(min(count, len(images)))]
    columns = math.ceil(math.sqrt(len(selected)))
    sheet = np.full((_CELL_SIZE * math.ceil(len(selected) / columns), _CELL_SIZE * columns, 3), 255, np.uint8)
    for index, image in enumerate(selected):
        top, left = (_CELL_SIZE * position for position in divmod(index, columns))
        cell = draw_annotations(image)
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    with atomic_write(out) as file:
        file.write(cv2.imencode(".png", sheet)[1].tobytes())


def draw_annotations(annotated: AnnotatedImage, enlarged_to: int = _CELL_SIZE - 4) -> Canvas:
    """The image, shrunk to fit or enlarged by an integer factor to at most ``enlarged_to`` pixels, with annotations."""
    image = read_image(annotated.path)
    if image is None:
        raise UserError(f"cannot draw {annotated.path}: it is missing or not an image")
    scale = (_CELL_SIZE - 4) / max(image.shape[:2])
    scale = max(math.floor(enlarged_to / max(image.shape[:2])), 1) if scale > 1 else scale
    height, width = image.shape[:2]
    interpolation = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    canvas: Any = cv2.resize(image, size, interpolation=interpolation)
    for index, segmentation in enumerate(annotated.masks):
        if segmentation is not None:
            mask = _decode_mask(segmentation, height, width)
            resized = cv2.resize(mask, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(resized, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, outlines, -1, _COLOURS[index % len(_COLOURS)], 1)
    for index, (box, label) in enumerate(zip(annotated.boxes, annotated.labels, strict=True)):
        x0, y0, x1, y1 = (round(min(max(value * scale, -_CELL_SIZE), 2 * _CELL_SIZE)) for value in box)
        colour = _COLOURS[index % len(_COLOURS)]
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colour, 1)
        text = printable(label)  # OpenCV crashes for a lone surrogate
        cv2.putText(canvas, text, (x0 + 2, max(y0 - 3, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
    return np.asarray(canvas, np.uint8)


def read_image(path: Path) -> Any:
    """The image [height, width, 3] in BGR, or ``None``. ``cv2.imread`` crashes for a path that is not UTF-8."""
    content = path.read_bytes() if path.is_file() else b""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None


def _decode_mask(segmentation: Any, height: int, width: int) -> Canvas:
    if isinstance(segmentation, dict):
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, height, width)
    else:
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return np.asarray(coco_mask.decode(rle), np.uint8)
