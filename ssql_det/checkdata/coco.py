"""Checks of annotations in COCO's layout, ``coco/{train2017, val2017, annotations}``, or in any COCO-format file."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssql_det.checkdata.findings import AnnotatedImage, Box, SplitReport, find_duplicates
from ssql_det.core.errors import UserError
from ssql_det.images.masks import MAX_PIXELS, parse_counts

SPLITS = {"train2017": 118287, "val2017": 5000}  # with their numbers of images in the COCO 2017 release
_NUM_CATEGORIES = 80  # of COCO 2017
_MAX_COORDINATE = 1e6  # in pixels; rasterizers fail with larger ones
_MAX_OUTLINE = 100  # of a polygon, in widths and heights of its image


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
        document = _load_document(path)
    except ValueError as failure:
        split.error(path, str(failure))
    else:
        _check_document(split, path, image_folder, document)
    return split


def check_readable(path: Path) -> None:
    """Raise a ``UserError`` for what makes pycocotools crash, take all memory or never end: numbers out of bounds, and
    RLE that does not fit its image. Other mistakes the reader of the file can find itself.

    A process checks each version of a file once, as COCO's training set takes half a minute.
    """
    try:
        status = os.stat(path)
    except OSError as failure:
        raise UserError(f"{path} cannot be read: {failure.strerror}") from failure
    _check_readable(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@functools.cache
def _check_readable(path: Path, version: tuple[int, ...]) -> None:
    try:
        document = _load_document(path, optional=("annotations",))  # COCO's test-dev has none
        sizes = {image["id"]: _get_size(image) for image in document["images"]}
    except ValueError as failure:
        raise UserError(f"{path}: {failure}") from failure
    for annotation in document.get("annotations", ()):
        image_id, segmentation = annotation.get("image_id"), annotation.get("segmentation")
        if not _is_id(image_id) or image_id not in sizes:
            continue  # readers leave it out
        problem = None if segmentation is None else _find_mask_problem(segmentation, sizes[image_id])
        if "bbox" in annotation and not _are_numbers(annotation["bbox"], 4):
            problem = "has no bbox of four numbers"
        if problem:
            raise UserError(f"{path}: annotation {annotation['id']} {problem}")


def _load_document(path: Path, optional: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a file, whose lists have only entries with an id; a ``ValueError`` says what is wrong."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as failure:
        raise ValueError(f"the file is not valid JSON ({failure})") from failure
    for key in ("images", "annotations", "categories"):
        if isinstance(document, dict) and key not in document and key in optional:
            continue
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"the file has no list {key!r}, so it is not in COCO's instances format")
        if not all(isinstance(each, dict) and _is_id(each.get("id")) for each in document[key]):
            raise ValueError(f"some of its {key} have no id, so it is not in COCO's instances format")
    return document


def _get_size(image: dict[str, Any]) -> tuple[int, int]:
    """The width and height of an image's entry."""
    size: list[Any] = [image.get("width"), image.get("height")]
    if not isinstance(image.get("file_name"), str) or not _are_numbers(size, 2) or min(size) < 1:
        raise ValueError(f"image {image['id']} lacks a file_name, or a width and height of 1 or more")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"image {image['id']} is {size[0]}x{size[1]}, but the most is {MAX_PIXELS} pixels")
    return int(size[0]), int(size[1])


def _check_document(split: SplitReport, path: Path, folder: Path, document: dict[str, Any]) -> None:
    for kind in ("images", "annotations", "categories"):
        for duplicate in find_duplicates(each["id"] for each in document[kind]):
            split.error(path, f"more than one of its {kind} have the id {duplicate}")
    if any(each["id"] == 0 for each in document["annotations"]):
        split.warn(path, "an annotation has the id 0, whose object COCO's metrics count as not found; number from 1")
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
        try:
            size = _get_size(image)
        except ValueError as failure:
            split.error(path, str(failure))
        else:
            _check_image(split, path, folder / image["file_name"], size, by_image[image["id"]], categories)
    split.check_classes(path, list(categories.values()))
    split.check_count(path, SPLITS.get(folder.name) if len(categories) == _NUM_CATEGORIES else None)


def _check_image(
    split: SplitReport,
    path: Path,
    image: Path,
    size: tuple[int, int],
    annotations: list[dict[str, Any]],
    categories: dict[Any, str],
) -> None:
    boxes: list[Box] = []
    labels: list[str] = []
    for each in annotations:
        name = f"annotation {each['id']} of {image.name}"
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
    split.images.append(AnnotatedImage(image, size, tuple(boxes), tuple(labels), masks))


def _find_segmentation_problem(annotation: dict[str, Any], size: tuple[int, int]) -> str | None:
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return None  # valid for a detector without masks
    problem = _find_mask_problem(segmentation, size)
    if problem or isinstance(segmentation, dict):
        return problem
    if annotation.get("iscrowd"):
        return "is a crowd with polygons, but a crowd's mask must be RLE"
    if not segmentation:
        return "has an empty list of polygons"
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        return "has a polygon with fewer than three corners or an odd number of coordinates"
    return None


def _find_mask_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Why pycocotools must not be given a segmentation of an image of this width and height."""
    if isinstance(segmentation, dict):
        return _find_rle_problem(segmentation, size)
    if not isinstance(segmentation, list):
        return "has a segmentation that is neither a list of polygons nor RLE"
    if not all(map(_are_numbers, segmentation)):
        return f"has a polygon that is not a list of numbers of at most {_MAX_COORDINATE:g}"
    if any(_is_longer(polygon, _MAX_OUTLINE * sum(size)) for polygon in segmentation):
        return f"has a polygon whose outline is more than {_MAX_OUTLINE} times its image's width and height"
    return None


def _is_longer(polygon: list[float], limit: float) -> bool:
    """Whether a polygon's outline has more pixels, which rasterizing it takes memory for."""
    if len(polygon) * max(map(abs, polygon), default=0) <= limit:  # so for most; the rest takes longer
        return False
    corners = np.resize(np.asarray(polygon, np.float64), (len(polygon) // 2 + 1, 2))  # closed
    return bool(np.abs(np.diff(corners, axis=0)).max(axis=1, initial=0).sum() > limit)


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
        and {int, float}.issuperset(map(type, values))
        and all(map(_MAX_COORDINATE.__ge__, map(abs, values)))  # also refuses NaN and infinity
    )
