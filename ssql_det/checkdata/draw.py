"""A contact sheet: images in a grid, with their names, boxes and mask outlines, and a legend of the classes."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ssql_det.checkdata.findings import AnnotatedImage
from ssql_det.core.errors import UserError
from ssql_det.images.drawing import MAX_SIDE, add_caption, draw_detections, draw_legend
from ssql_det.images.masks import Masks, decode_rle
from ssql_det.images.reading import Pixels, read_rgb
from ssql_det.images.results import save_picture

_MAX_IMAGES = 100


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
    """Write a PNG of ``count`` images, evenly spread over the data set; the legend counts their objects by class."""
    if not images:
        raise UserError("there is no image to draw")
    if Path(out).resolve() in {image.path.resolve() for image in images}:
        raise UserError(f"{out} is an image of the data set; name another file for the contact sheet")
    selected = [images[index * len(images) // count] for index in range(min(count, len(images)))]
    names = sorted({label for image in images for label in image.labels})
    classes = {name: index for index, name in enumerate(names)}
    cells = [add_caption(draw_annotations(image, classes), _describe(image)) for image in selected]
    columns = math.ceil(math.sqrt(len(cells)))
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    sheet = np.full((height * math.ceil(len(cells) / columns), width * columns, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = height * (index // columns), width * (index % columns)
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    counts = Counter(label for image in selected for label in image.labels)
    legend = [(f"{name} ({counts[name]})", index) for name, index in classes.items() if counts[name]]
    save_picture(out, [np.vstack([sheet, draw_legend(legend, sheet.shape[1])])])


def _describe(image: AnnotatedImage) -> str:
    count = len(image.labels)
    return f"{image.path.name}: {count} {'object' if count == 1 else 'objects'}"


def draw_annotations(annotated: AnnotatedImage, classes: Mapping[str, int], enlarged_to: int = MAX_SIDE) -> Pixels:
    """The image with its annotations; ``classes`` are indices by name, for the colours. See `draw_detections`."""
    image = read_rgb(annotated.path)
    height, width = image.shape[:2]
    try:
        masks = [None if each is None else _decode_mask(each, height, width) for each in annotated.masks] or None
    except ValueError as failure:
        raise UserError(f"cannot draw {annotated.path}: a mask is invalid ({failure}); correct it") from failure
    indices = [classes[label] for label in annotated.labels]
    return draw_detections(image, annotated.boxes, annotated.labels, indices, masks, enlarged_to)


def _decode_mask(segmentation: Any, height: int, width: int) -> Masks:
    """The mask of a COCO segmentation: an RLE, or polygons."""
    if isinstance(segmentation, dict):
        return decode_rle(segmentation)
    rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return np.asarray(coco_mask.decode(rle), np.bool_)
