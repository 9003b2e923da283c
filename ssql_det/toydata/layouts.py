"""Scenes as files: what is kept of one once it is drawn, and the layouts of PASCAL VOC and of COCO 2017.

VOC's is ``JPEGImages``, ``Annotations``, ``ImageSets/Main``. Its boxes are pixel indices from 1, ends inclusive;
readers subtract 1 from the minimum and so get back ``(x0, y0, x1, y1)`` with exclusive ends. COCO's is ``train2017``,
``val2017`` and ``annotations/instances_*.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import cv2

from ssql_det.toydata.digits import CLASSES
from ssql_det.toydata.scenes import Object, Scene, polygons, run_lengths

_JPEG_QUALITY = 92
LICENCES = [
    {
        "id": 1,
        "name": "CC BY 4.0 (digits: E. Alpaydin, C. Kaynak, UCI Machine Learning Repository) and "
        "CC BY 2.0 (photographs: danielbuechele, vultilion)",
        "url": "https://creativecommons.org/licenses/by/4.0/",
    }
]


@dataclass(frozen=True)
class AnnotatedObject:
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
class EncodedScene:
    """An encoded image, its size, and what is in it."""

    jpeg: bytes
    height: int
    width: int
    objects: tuple[AnnotatedObject, ...]


def encode_scene(scene: Scene) -> EncodedScene:
    """Encode the image, outline the masks: little enough to keep for a whole data set."""
    height, width = scene.image.shape[:2]
    encoded = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return EncodedScene(encoded.tobytes(), height, width, tuple(_record(each) for each in scene.objects))


def _record(each: Object) -> AnnotatedObject:
    return AnnotatedObject(
        label=each.label,
        box=each.box,
        area=int(each.mask.sum()),
        segmentation=run_lengths(each.mask) if each.crowd else polygons(each.mask),
        truncated=each.truncated,
        occluded=each.occluded,
        difficult=each.difficult,
        crowd=each.crowd,
    )


def write_voc(root: Path, split: str, names: Sequence[str], scenes: Sequence[EncodedScene]) -> None:
    """Write one image set: images, annotations, and the lists of its names, overall and by class."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, scene in zip(names, scenes, strict=True):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(scene.jpeg)
        document = Xml.ElementTree(_annotation(root.name, name, scene))
        Xml.indent(document)
        document.write(root / "Annotations" / f"{name}.xml", encoding="utf-8")
    lists = root / "ImageSets/Main"
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for label, category in enumerate(CLASSES):
        lines = [f"{name} {_presence(scene, label):2d}\n" for name, scene in zip(names, scenes, strict=True)]
        (lists / f"{category}_{split}.txt").write_text("".join(lines))


def _presence(scene: EncodedScene, label: int) -> int:
    """VOC's: 1 where the class is in the image, 0 where only difficult ones are, else -1."""
    found = [each.difficult for each in scene.objects if each.label == label]
    return -1 if not found else 0 if all(found) else 1


def _annotation(folder: str, name: str, scene: EncodedScene) -> Xml.Element:
    root = Xml.Element("annotation")
    _text(root, folder=folder, filename=f"{name}.jpg")
    _text(Xml.SubElement(root, "source"), database="ssql_det toy scenes", image="generated")
    _text(Xml.SubElement(root, "size"), width=scene.width, height=scene.height, depth=3)
    _text(root, segmented=0)
    for each in scene.objects:
        root.append(_object(each))
    return root


def _object(record: AnnotatedObject) -> Xml.Element:
    element = Xml.Element("object")
    _text(element, name=CLASSES[record.label], pose="Unspecified", truncated=int(record.truncated))
    _text(element, occluded=int(record.occluded), difficult=int(record.difficult))
    x0, y0, x1, y1 = record.box
    _text(Xml.SubElement(element, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    return element


def _text(parent: Xml.Element, **children: object) -> None:
    for tag, value in children.items():
        Xml.SubElement(parent, tag).text = str(value)


def write_coco(root: Path, split: str, first_id: int, scenes: Sequence[EncodedScene]) -> None:
    """Write one split; image ids count from ``first_id``, annotation ids from a thousand times that."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id, scene in enumerate(scenes, start=first_id):
        name = f"{image_id:012d}.jpg"
        (root / split / name).write_bytes(scene.jpeg)
        images.append({"id": image_id, "file_name": name, "height": scene.height, "width": scene.width, "license": 1})
        annotations += _annotations(image_id, scene)
    document = {
        "info": {"description": "ssql_det toy scenes", "version": "1.0"},
        "licenses": LICENCES,
        "categories": [{"id": label + 1, "name": name, "supercategory": "digit"} for label, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _annotations(image_id: int, scene: EncodedScene) -> list[dict[str, Any]]:
    return [
        {
            "id": image_id * 1000 + number,
            "image_id": image_id,
            "category_id": each.label + 1,
            "bbox": [each.box[0], each.box[1], each.box[2] - each.box[0], each.box[3] - each.box[1]],
            "area": each.area,
            "iscrowd": int(each.crowd),
            "segmentation": each.segmentation,
        }
        for number, each in enumerate(scene.objects, start=1)
    ]
