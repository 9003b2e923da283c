"""PASCAL VOC's layout: ``VOC2007/{JPEGImages, Annotations, ImageSets/Main}``."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

from ssql_det.checkdata.findings import AnnotatedImage, Box, SplitReport, find_duplicates

CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
SPLITS = {  # what the reference recipe reads, with the images of the detection task by the development kits
    "VOC2007": {"trainval": 5011, "test": 4952},
    "VOC2012": {"trainval": 11540},
}


def check_voc(folder: Path) -> list[SplitReport]:
    """Check the splits of one year's folder; images are checked apart."""
    splits = [_check_split(folder, name) for name in SPLITS[folder.name]]
    first, *others = splits
    train = {picture.path.stem for picture in first.pictures}
    for other in others:
        shared = sorted(train & {picture.path.stem for picture in other.pictures})
        if shared:
            other.warn(_list_of(folder, other), f"{len(shared)} images are in {first.name} too, {shared[0]} first")
    return splits


def _list_of(folder: Path, split: SplitReport) -> Path:
    return folder / "ImageSets/Main" / f"{split.name.split()[-1]}.txt"


def _check_split(folder: Path, name: str) -> SplitReport:
    split = SplitReport(f"{folder.name} {name}")
    missing = [part for part in ("JPEGImages", "Annotations", "ImageSets/Main") if not (folder / part).is_dir()]
    for part in missing:
        split.error(folder / part, "the folder is missing")
    listing = _list_of(folder, split)
    if missing:
        return split
    if not listing.is_file():
        split.error(listing, "the list of the split's images is missing")
        return split
    try:
        names = [line.split()[0] for line in listing.read_text("utf-8").splitlines() if line.strip()]
    except ValueError as failure:
        split.error(listing, f"the list cannot be read ({failure})")
        return split
    if not names:
        split.error(listing, "the list is empty")
    for twice in find_duplicates(names):
        split.error(listing, f"{twice} is listed more than once")
    for image in dict.fromkeys(names):
        _check_annotation(split, folder, image)
    _check_counts(split, folder, listing, name)
    return split


def _check_annotation(split: SplitReport, folder: Path, name: str) -> None:
    path = folder / "Annotations" / f"{name}.xml"
    picture = folder / "JPEGImages" / f"{name}.jpg"
    if not path.is_file():
        split.error(path, "the annotation is missing")
        return
    try:
        root = Xml.parse(path).getroot()
        size = (int(_text(root, "size/width")), int(_text(root, "size/height")))
    except (Xml.ParseError, ValueError, LookupError) as failure:
        split.error(path, f"the annotation cannot be read ({failure})")
        return
    boxes: list[Box] = []
    labels: list[str] = []
    for number, each in enumerate(root.iter("object"), start=1):
        try:
            label, box = _text(each, "name"), _box(each)
        except ValueError as failure:
            split.error(path, f"object {number} cannot be read ({failure})")
            continue
        split.check_box(path, f"object {number} ({label})", box, size)
        boxes.append(box)
        labels.append(label)
    split.pictures.append(AnnotatedImage(picture, size, tuple(boxes), tuple(labels)))


def _box(element: Xml.Element) -> Box:
    """VOC counts pixels from 1 and includes the last."""
    x0, y0, x1, y1 = (float(_text(element, f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
    return x0 - 1, y0 - 1, x1, y1


def _text(element: Xml.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"it has no {path}")
    return text.strip()


def _check_counts(split: SplitReport, folder: Path, listing: Path, name: str) -> None:
    found = set(split.objects)
    real = bool(found & set(CLASSES))
    split.check_classes(listing, CLASSES if real else sorted(found))
    if not real:
        return
    for unknown in sorted(found - set(CLASSES)):
        split.error(folder / "Annotations", f"class {unknown!r} is none of VOC's twenty")
    split.check_count(listing, SPLITS[folder.name][name])
