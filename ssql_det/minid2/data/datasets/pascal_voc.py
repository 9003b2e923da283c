"""Reading PASCAL VOC's layout: ``JPEGImages``, ``Annotations/<image>.xml``, ``ImageSets/Main/<split>.txt``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from ...structures import BoxMode
from ..catalog import DatasetCatalog, MetadataCatalog
from .files import existing

__all__ = ["CLASS_NAMES", "load_voc_instances", "register_pascal_voc"]

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def load_voc_instances(dirname: str, split: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A dict for each image of a split, with its objects, including difficult ones."""
    listed = Path(existing(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt"))).read_text("utf-8")
    return [_record(dirname, line.strip(), class_names) for line in listed.splitlines() if line.strip()]


def register_pascal_voc(
    name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES
) -> None:
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)


def _record(dirname: str, image: str, class_names: Sequence[str]) -> dict[str, Any]:
    path = existing(os.path.join(dirname, "Annotations", f"{image}.xml"))
    try:
        root = Xml.parse(path).getroot()
        return {
            "file_name": os.path.join(dirname, "JPEGImages", f"{image}.jpg"),
            "image_id": image,
            "height": int(_text(root, "size/height")),
            "width": int(_text(root, "size/width")),
            "annotations": [_annotation(each, class_names) for each in root.findall("object")],
        }
    except (Xml.ParseError, ValueError) as fault:
        raise ValueError(f"{path} is not a valid VOC annotation: {fault}") from fault


def _annotation(element: Xml.Element, class_names: Sequence[str]) -> dict[str, Any]:
    name = _text(element, "name")
    if name not in class_names:
        raise ValueError(f"class '{name}' is not in the data set's classes ({', '.join(class_names)})")
    x0, y0, x1, y1 = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ValueError(f"the box of a {name} is not finite: {x0}, {y0}, {x1}, {y1}")
    # VOC's pixel indices start at 1 and include the end, so only the minimum changes
    box = [x0 - 1.0, y0 - 1.0, x1, y1]
    return {"category_id": class_names.index(name), "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}


def _text(element: Xml.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> has no <{path}>")
    return text
