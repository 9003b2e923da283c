"""Scenes in PASCAL VOC's layout: ``JPEGImages``, ``Annotations``, ``ImageSets/Main``.

Boxes are VOC's: pixel indices from 1, ends inclusive. Readers subtract 1 from the minimum and so get back
``(x0, y0, x1, y1)`` with exclusive ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

from ssql_det.toydata.digits import CLASSES
from ssql_det.toydata.record import ObjectRecord, SceneRecord


def write_voc(root: Path, split: str, names: Sequence[str], scenes: Sequence[SceneRecord]) -> None:
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


def _presence(scene: SceneRecord, label: int) -> int:
    """VOC's: 1 where the class is in the image, 0 where only difficult ones are, else -1."""
    found = [each.difficult for each in scene.objects if each.label == label]
    return -1 if not found else 0 if all(found) else 1


def _annotation(folder: str, name: str, scene: SceneRecord) -> Xml.Element:
    root = Xml.Element("annotation")
    _text(root, folder=folder, filename=f"{name}.jpg")
    _text(Xml.SubElement(root, "source"), database="ssql_det toy scenes", image="generated")
    _text(Xml.SubElement(root, "size"), width=scene.width, height=scene.height, depth=3)
    _text(root, segmented=0)
    for each in scene.objects:
        root.append(_object(each))
    return root


def _object(record: ObjectRecord) -> Xml.Element:
    element = Xml.Element("object")
    _text(element, name=CLASSES[record.label], pose="Unspecified", truncated=int(record.truncated))
    _text(element, occluded=int(record.occluded), difficult=int(record.difficult))
    x0, y0, x1, y1 = record.box
    _text(Xml.SubElement(element, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    return element


def _text(parent: Xml.Element, **children: object) -> None:
    for tag, value in children.items():
        Xml.SubElement(parent, tag).text = str(value)
