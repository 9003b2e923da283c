"""COCO's layout, ``coco/{train2017, val2017, annotations}``, or any COCO-format file with its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssql_det.checkdata.findings import AnnotatedImage, Box, SplitReport, find_duplicates

SPLITS = {"train2017": 118287, "val2017": 5000}  # with the images of the COCO 2017 release
CATEGORIES = 80
_LARGEST = 1e6  # pixels: no image is larger, and rasterizers break on what is


def check_coco(folder: Path) -> list[SplitReport]:
    """Check both splits of a ``coco`` folder; images are checked apart."""
    return [
        check_coco_file(folder / "annotations" / f"instances_{split}.json", folder / split, f"coco {split}")
        for split in SPLITS
    ]


def check_coco_file(path: Path, images: Path, name: str) -> SplitReport:
    split = SplitReport(name)
    if not images.is_dir():
        split.error(images, "the folder of images is missing")
    if not path.is_file():
        split.error(path, "the annotation file is missing")
        return split
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as failure:
        split.error(path, f"the file is not valid JSON ({failure})")
        return split
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            split.error(path, f"the file has no list {key!r}: it is not in COCO's instances format")
            return split
        if not all(isinstance(each, dict) and _is_id(each.get("id")) for each in document[key]):
            split.error(path, f"some of its {key} have no id: it is not in COCO's instances format")
            return split
    _check_document(split, path, images, document)
    return split


def _check_document(split: SplitReport, path: Path, folder: Path, document: dict[str, Any]) -> None:
    for kind in ("images", "annotations", "categories"):
        for twice in find_duplicates(each["id"] for each in document[kind]):
            split.error(path, f"id {twice} is given to more than one of its {kind}")
    categories = {each["id"]: str(each.get("name", each["id"])) for each in document["categories"]}
    by_image: dict[Any, list[dict[str, Any]]] = {each["id"]: [] for each in document["images"]}
    for each in document["annotations"]:
        what = f"annotation {each.get('id')}"
        if not _is_id(each.get("image_id")) or each["image_id"] not in by_image:
            split.error(path, f"{what} is of image {each.get('image_id')}, which is not in the file")
        elif not _is_id(each.get("category_id")) or each["category_id"] not in categories:
            split.error(path, f"{what} is of category {each.get('category_id')}, which is not in the file")
        else:
            by_image[each["image_id"]].append(each)
    for image in document["images"]:
        sides: list[Any] = [image.get("width"), image.get("height")]
        if not isinstance(image.get("file_name"), str) or not _are_numbers(sides, 2) or min(sides) < 1:
            split.error(path, f"image {image['id']} lacks one of file_name, width, height")
            continue
        _check_image(split, path, folder, image, by_image[image["id"]], categories)
    split.check_classes(path, list(categories.values()))
    split.check_count(path, SPLITS.get(folder.name) if len(categories) == CATEGORIES else None)


def _check_image(
    split: SplitReport,
    path: Path,
    folder: Path,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    categories: dict[Any, str],
) -> None:
    size = (int(image["width"]), int(image["height"]))
    boxes: list[Box] = []
    labels: list[str] = []
    for each in annotations:
        what = f"annotation {each.get('id')} of {image['file_name']}"
        bbox: Any = each.get("bbox")
        if not _are_numbers(bbox, 4):
            split.error(path, f"{what} has no bbox of four numbers")
            continue
        box = (bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3])
        split.check_box(path, what, box, size)
        fault = _segmentation_fault(each, size)
        if fault:
            split.error(path, f"{what} {fault}")
        boxes.append(box)
        labels.append(categories[each["category_id"]])
    masks = tuple(each.get("segmentation") for each in annotations)
    split.pictures.append(AnnotatedImage(folder / image["file_name"], size, tuple(boxes), tuple(labels), masks))


def _segmentation_fault(annotation: dict[str, Any], size: tuple[int, int]) -> str | None:
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return None  # boxes alone are fine for a detector without masks
    if isinstance(segmentation, dict):
        return _run_length_fault(segmentation, size)
    if annotation.get("iscrowd"):
        return "is a crowd with polygons; a crowd's mask is given in run lengths"
    if not isinstance(segmentation, list) or not segmentation:
        return "has an empty list of polygons"
    if not all(_are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation):
        return "has a polygon of fewer than three corners, or half a corner"
    return None


def _run_length_fault(segmentation: dict[str, Any], size: tuple[int, int]) -> str | None:
    stated, counts = segmentation.get("size"), segmentation.get("counts")
    if stated != [size[1], size[0]]:
        return f"has a run-length mask of size {stated}, the image has height and width {[size[1], size[0]]}"
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        return "has a run-length mask without whole counts"
    if sum(counts) != size[0] * size[1]:
        return f"has a run-length mask of {sum(counts)} pixels, the image has {size[0] * size[1]}"
    return None


def _uncompressed(text: str) -> list[int] | None:
    """COCO's compressed counts: base 32 with a sign, from the third on as a difference to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        digit = ord(letter) - 48
        if not 0 <= digit < 64 or shift > 30:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts if shift == 0 else None


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _are_numbers(values: Any, count: int | None = None) -> bool:
    return (
        isinstance(values, list)
        and count in (None, len(values))
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        and all(abs(value) <= _LARGEST for value in values)  # neither NaN nor infinite
    )
