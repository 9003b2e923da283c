"""Checks of annotations in COCO's layout, ``coco/{train2017, val2017, annotations}``, or in any COCO-format file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssql_det.checkdata.findings import AnnotatedImage, Box, SplitReport, find_duplicates
from ssql_det.images.masks import parse_counts

SPLITS = {"train2017": 118287, "val2017": 5000}  # with their numbers of images in the COCO 2017 release
_NUM_CATEGORIES = 80  # of COCO 2017
_MAX_COORDINATE = 1e6  # in pixels; rasterizers fail with larger ones


def check_coco(folder: Path) -> list[SplitReport]:
    """Check the annotations of both splits; ``check_images`` checks the images."""
    return [
        check_coco_file(folder / "annotations" / f"instances_{split}.json", folder / split, f"coco {split}")
        for split in SPLITS
    ]


def check_coco_file(path: Path, image_folder: Path, name: str) -> SplitReport:
    """Check the annotations of one file, whose images are in ``image_folder``."""
    split = SplitReport(name)
    if not image_folder.is_dir():
        split.error(image_folder, "the folder of images is missing")
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
            split.error(path, f"the file has no list {key!r}, so it is not in COCO's instances format")
            return split
        if not all(isinstance(each, dict) and _is_id(each.get("id")) for each in document[key]):
            split.error(path, f"some of its {key} have no id, so it is not in COCO's instances format")
            return split
    _check_document(split, path, image_folder, document)
    return split


def _check_document(split: SplitReport, path: Path, folder: Path, document: dict[str, Any]) -> None:
    for kind in ("images", "annotations", "categories"):
        for duplicate in find_duplicates(each["id"] for each in document[kind]):
            split.error(path, f"more than one of its {kind} have the id {duplicate}")
    categories = {each["id"]: str(each.get("name", each["id"])) for each in document["categories"]}
    by_image: dict[Any, list[dict[str, Any]]] = {each["id"]: [] for each in document["images"]}
    for each in document["annotations"]:
        name = f"annotation {each.get('id')}"
        if not _is_id(each.get("image_id")) or each["image_id"] not in by_image:
            split.error(path, f"{name} is of image {each.get('image_id')}, which is not in the file")
        elif not _is_id(each.get("category_id")) or each["category_id"] not in categories:
            split.error(path, f"{name} is of category {each.get('category_id')}, which is not in the file")
        else:
            by_image[each["image_id"]].append(each)
    for image in document["images"]:
        size: list[Any] = [image.get("width"), image.get("height")]
        if not isinstance(image.get("file_name"), str) or not _are_numbers(size, 2) or min(size) < 1:
            split.error(path, f"image {image['id']} lacks one of file_name, width, height")
            continue
        _check_image(split, path, folder, image, by_image[image["id"]], categories)
    split.check_classes(path, list(categories.values()))
    split.check_count(path, SPLITS.get(folder.name) if len(categories) == _NUM_CATEGORIES else None)


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
        name = f"annotation {each.get('id')} of {image['file_name']}"
        bbox: Any = each.get("bbox")
        if not _are_numbers(bbox, 4):
            split.error(path, f"{name} has no bbox of four numbers")
            continue
        box = (bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3])
        split.check_box(path, name, box, size)
        problem = _find_segmentation_problem(each, size)
        if problem:
            split.error(path, f"{name} {problem}")
        boxes.append(box)
        labels.append(categories[each["category_id"]])
    masks = tuple(each.get("segmentation") for each in annotations)
    split.images.append(AnnotatedImage(folder / image["file_name"], size, tuple(boxes), tuple(labels), masks))


def _find_segmentation_problem(annotation: dict[str, Any], size: tuple[int, int]) -> str | None:
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return None  # valid for a detector without masks
    if isinstance(segmentation, dict):
        return _find_rle_problem(segmentation, size)
    if annotation.get("iscrowd"):
        return "is a crowd with polygons, but a crowd's mask must be RLE"
    if not isinstance(segmentation, list) or not segmentation:
        return "has an empty list of polygons"
    if not all(_are_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation):
        return "has a polygon with fewer than three corners or an odd number of coordinates"
    return None


def _find_rle_problem(segmentation: dict[str, Any], size: tuple[int, int]) -> str | None:
    rle_size, counts = segmentation.get("size"), segmentation.get("counts")
    if rle_size != [size[1], size[0]]:
        return f"has an RLE mask of size {rle_size}, but the image has height and width {[size[1], size[0]]}"
    if isinstance(counts, str):
        try:
            counts = parse_counts(counts).tolist()
        except ValueError:
            return "has an RLE mask whose counts are not whole numbers"
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        return "has an RLE mask whose counts are not whole numbers"
    if sum(counts) != size[0] * size[1]:
        return f"has an RLE mask of {sum(counts)} pixels, but the image has {size[0] * size[1]}"
    return None


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _are_numbers(values: Any, count: int | None = None) -> bool:
    return (
        isinstance(values, list)
        and count in (None, len(values))
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        and all(abs(value) <= _MAX_COORDINATE for value in values)  # also refuses NaN and infinity
    )
