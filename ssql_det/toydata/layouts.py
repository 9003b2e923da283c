"""Writing scenes in the layouts of PASCAL VOC and COCO 2017.

VOC: ``JPEGImages``, ``Annotations``, ``ImageSets/Main``. Boxes are pixel indices from 1, both ends included; readers
subtract 1 from the minimum, which gives ``(x0, y0, x1, y1)`` with exclusive ends.
COCO: ``train2017``, ``val2017``, ``annotations/instances_*.json``.
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
from ssql_det.toydata.scenes import Scene, SceneObject, mask_to_polygons, mask_to_rle

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
    """``box`` is (x0, y0, x1, y1), ends exclusive; ``segmentation`` is COCO's: polygons, or RLE for a crowd."""

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
    """A scene as a JPEG image and annotations, much smaller than its pixels and masks."""

    jpeg: bytes
    height: int
    width: int
    objects: tuple[AnnotatedObject, ...]


def encode_scene(scene: Scene) -> EncodedScene:
    """Encode the image as JPEG and the masks as polygons or RLE."""
    height, width = scene.image.shape[:2]
    encoded = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return EncodedScene(encoded.tobytes(), height, width, tuple(_annotate(each) for each in scene.objects))


def _annotate(each: SceneObject) -> AnnotatedObject:
    return AnnotatedObject(
        label=each.label,
        box=each.box,
        area=int(each.mask.sum()),
        segmentation=mask_to_rle(each.mask) if each.crowd else mask_to_polygons(each.mask),
        truncated=each.truncated,
        occluded=each.occluded,
        difficult=each.difficult,
        crowd=each.crowd,
    )


def write_voc(root: Path, split: str, names: Sequence[str], scenes: Sequence[EncodedScene]) -> None:
    """Write one split: images, annotations, and the lists of image names, of all images and for each class."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, scene in zip(names, scenes, strict=True):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(scene.jpeg)
        document = Xml.ElementTree(_to_xml(root.name, name, scene))
        Xml.indent(document)
        document.write(root / "Annotations" / f"{name}.xml", encoding="utf-8")
    lists = root / "ImageSets/Main"
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for label, category in enumerate(CLASSES):
        lines = [f"{name} {_presence(scene, label):2d}\n" for name, scene in zip(names, scenes, strict=True)]
        (lists / f"{category}_{split}.txt").write_text("".join(lines))


def _presence(scene: EncodedScene, label: int) -> int:
    """VOC's flag: 1 if the image has an object of the class, 0 if only difficult ones, else -1."""
    difficult = [each.difficult for each in scene.objects if each.label == label]
    return -1 if not difficult else 0 if all(difficult) else 1


def _to_xml(folder: str, name: str, scene: EncodedScene) -> Xml.Element:
    root = Xml.Element("annotation")
    _add_text(root, folder=folder, filename=f"{name}.jpg")
    _add_text(Xml.SubElement(root, "source"), database="ssql_det toy scenes", image="generated")
    _add_text(Xml.SubElement(root, "size"), width=scene.width, height=scene.height, depth=3)
    _add_text(root, segmented=0)
    for each in scene.objects:
        root.append(_object_to_xml(each))
    return root


def _object_to_xml(record: AnnotatedObject) -> Xml.Element:
    element = Xml.Element("object")
    _add_text(element, name=CLASSES[record.label], pose="Unspecified", truncated=int(record.truncated))
    _add_text(element, occluded=int(record.occluded), difficult=int(record.difficult))
    x0, y0, x1, y1 = record.box
    _add_text(Xml.SubElement(element, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    return element


def _add_text(parent: Xml.Element, **children: object) -> None:
    for tag, value in children.items():
        Xml.SubElement(parent, tag).text = str(value)


def write_coco(root: Path, split: str, first_id: int, scenes: Sequence[EncodedScene]) -> None:
    """Write one split. Image ids start at ``first_id``; annotation ids are 1000 times the image id plus a number."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id, scene in enumerate(scenes, start=first_id):
        name = f"{image_id:012d}.jpg"
        (root / split / name).write_bytes(scene.jpeg)
        images.append({"id": image_id, "file_name": name, "height": scene.height, "width": scene.width, "license": 1})
        annotations += _to_coco_annotations(image_id, scene)
    document = {
        "info": {"description": "ssql_det toy scenes", "version": "1.0"},
        "licenses": LICENCES,
        "categories": [{"id": label + 1, "name": name, "supercategory": "digit"} for label, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


def _to_coco_annotations(image_id: int, scene: EncodedScene) -> list[dict[str, Any]]:
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
