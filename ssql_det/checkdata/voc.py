"""Checks of annotations in PASCAL VOC's layout: ``VOC2007/{JPEGImages, Annotations, ImageSets/Main}``."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as Xml

from ssql_det.checkdata.findings import AnnotatedImage, Box, SplitReport, find_duplicates

CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
SPLITS = {  # those of the reference recipe, with their numbers of images for detection by the development kits
    "VOC2007": {"trainval": 5011, "test": 4952},
    "VOC2012": {"trainval": 11540},
}


def check_voc(folder: Path) -> list[SplitReport]:
    """Check the annotations of one year's folder; ``check_images`` checks the images."""
    splits = [_check_split(folder, name) for name in SPLITS[folder.name]]
    first, *others = splits
    train = {image.path.stem for image in first.images}
    for other in others:
        shared = sorted(train & {image.path.stem for image in other.images})
        if shared:
            overlap = f"{len(shared)} images are in {first.name} too, such as {shared[0]}"
            other.warn(_list_path(folder, other), overlap)
    return splits


def _list_path(folder: Path, split: SplitReport) -> Path:
    return folder / "ImageSets/Main" / f"{split.name.split()[-1]}.txt"


def _check_split(folder: Path, name: str) -> SplitReport:
    split = SplitReport(f"{folder.name} {name}")
    missing = [part for part in ("JPEGImages", "Annotations", "ImageSets/Main") if not (folder / part).is_dir()]
    for part in missing:
        split.error(folder / part, "the folder is missing")
    list_path = _list_path(folder, split)
    if missing:
        return split
    if not list_path.is_file():
        split.error(list_path, "the list of the split's images is missing")
        return split
    try:
        names = [line.split()[0] for line in list_path.read_text("utf-8").splitlines() if line.strip()]
    except ValueError as failure:
        split.error(list_path, f"the list cannot be read ({failure})")
        return split
    if not names:
        split.error(list_path, "the list is empty")
    for duplicate in find_duplicates(names):
        split.error(list_path, f"{duplicate} is listed more than once")
    for image_name in dict.fromkeys(names):
        _check_annotation(split, folder, image_name)
    _check_counts(split, folder, list_path, name)
    return split


def _check_annotation(split: SplitReport, folder: Path, name: str) -> None:
    path = folder / "Annotations" / f"{name}.xml"
    image = folder / "JPEGImages" / f"{name}.jpg"
    if not os.path.isfile(path):  # unlike Path.is_file, whatever the list says
        split.error(path, "the annotation is missing")
        return
    try:
        root = Xml.parse(path).getroot()
        size = (int(_get_text(root, "size/width")), int(_get_text(root, "size/height")))
    except (Xml.ParseError, ValueError, LookupError) as failure:
        split.error(path, f"the annotation cannot be read ({failure})")
        return
    boxes: list[Box] = []
    labels: list[str] = []
    for number, element in enumerate(root.iter("object"), start=1):
        try:
            label, box = _get_text(element, "name"), _get_box(element)
        except ValueError as failure:
            split.error(path, f"object {number} cannot be read ({failure})")
            continue
        split.check_box(path, f"object {number} ({label})", box, size)
        boxes.append(box)
        labels.append(label)
    split.images.append(AnnotatedImage(image, size, tuple(boxes), tuple(labels)))


def _get_box(element: Xml.Element) -> Box:
    """In VOC pixels count from 1 and the last one is included; here from 0 and excluded."""
    x0, y0, x1, y1 = (float(_get_text(element, f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return x0 - 1, y0 - 1, x1, y1


def _get_text(element: Xml.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"it has no {path}")
    return text.strip()


def _check_counts(split: SplitReport, folder: Path, list_path: Path, name: str) -> None:
    classes = set(split.object_counts)
    is_voc = bool(classes & set(CLASSES))  # else another data set in its layout, such as toy data
    split.check_classes(list_path, CLASSES if is_voc else sorted(classes))
    if not is_voc:
        return
    for unknown in sorted(classes - set(CLASSES)):
        split.error(folder / "Annotations", f"class {unknown!r} is not one of VOC's twenty")
    split.check_count(list_path, SPLITS[folder.name][name])
