"""Reading COCO's format: a folder of images and a JSON file of instances with boxes, polygons or RLE masks."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pycocotools import mask as coco

from ...structures import BoxMode
from ..catalog import DatasetCatalog, MetadataCatalog
from .files import existing

__all__ = ["load_coco_json", "register_coco_instances"]

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
Entries = list[dict[str, Any]]

_MIN_COORDINATES = 6  # of a polygon, which has at least three corners


def load_coco_json(
    json_file: StrPath,
    image_root: StrPath,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> Entries:
    """A dict for each image, sorted by id, with its annotations.

    With ``dataset_name``, category ids are mapped to 0, 1, ... in the order of the file's ids, and the metadata of that
    name get ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``. Annotations keep box, category, ``iscrowd``,
    segmentation and ``extra_annotation_keys``.
    """
    path = existing(json_file)
    document = _document(path)
    try:
        ids = _contiguous_ids(path, document["categories"], dataset_name) if dataset_name is not None else None
        annotations = _by_image(path, document)
        images = {image["id"]: image for image in document["images"]}
        keys = ("iscrowd", "bbox", "category_id", *(extra_annotation_keys or ()))
        records = [
            {
                "file_name": os.path.join(image_root, images[image_id]["file_name"]),
                "height": _length(path, images[image_id], "height"),
                "width": _length(path, images[image_id], "width"),
                "image_id": image_id,
                "annotations": [_instance(path, each, keys, ids) for each in annotations[image_id]],
            }
            for image_id in sorted(images)
        ]
    except KeyError as missing:
        raise ValueError(f"{path} is not in COCO's instances format: an entry has no {missing}") from missing
    except TypeError as fault:
        raise ValueError(f"{path} is not in COCO's instances format: {fault}") from fault
    logger.info(f"Loaded {len(records)} images in COCO format from {path}")
    _drop_degenerate_instances(path, records)
    return records


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: StrPath, image_root: StrPath) -> None:
    """Register a data set by its annotation file and image folder."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


def _document(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{path} is not valid JSON: {fault}") from fault
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not in COCO's instances format: it holds a {type(document).__name__}")
    return document


def _contiguous_ids(path: str, categories: Entries, dataset_name: str) -> dict[int, int]:
    names = {each["id"]: each["name"] for each in categories}
    ids = {category_id: index for index, category_id in enumerate(sorted(names))}
    if [*ids] != [*range(1, len(ids) + 1)] and "coco" not in dataset_name:  # COCO's ids have gaps
        logger.warning(f"The category ids in {path} are not 1, 2, ...: they are mapped to 0, 1, ...")
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = [names[category_id] for category_id in ids]
    metadata.thing_dataset_id_to_contiguous_id = ids
    return ids


def _by_image(path: str, document: dict[str, Any]) -> defaultdict[int, Entries]:
    annotations = defaultdict(list)
    for each in document.get("annotations") or ():  # test sets have no annotations
        annotations[each["image_id"]].append(each)
    images = {image["id"] for image in document["images"]}
    strays = sum(len(each) for image_id, each in annotations.items() if image_id not in images)
    if strays:
        logger.warning(f"{path} has {strays} annotations of images that are not in it")
    if "minival" not in path:  # the published minival files repeat a few ids
        ids = (each["id"] for image_id in images for each in annotations[image_id])
        _refuse_repeated(path, ids)
    return annotations


def _refuse_repeated(path: str, ids: Iterable[int]) -> None:
    repeated = [number for number, times in Counter(ids).items() if times > 1]
    if repeated:
        raise ValueError(f"Annotation ids in '{path}' are not unique: {repeated[0]} occurs more than once")


def _length(path: str, image: dict[str, Any], name: str) -> float:
    length = image[name]
    if not isinstance(length, (int, float)):
        raise ValueError(f"image {image['id']} in {path} has the {name} {length!r}, which is not a number")
    return length


def _instance(path: str, entry: dict[str, Any], keys: Iterable[str], ids: dict[int, int] | None) -> dict[str, Any]:
    what = f"annotation {entry.get('id')} of image {entry['image_id']} in {path}"
    if entry.get("bbox") == []:
        raise ValueError(f"{what} has an empty 'bbox', which is not COCO's format")
    if entry.get("ignore", 0):
        raise ValueError(f"{what} is marked 'ignore', which is not supported")
    instance = {key: entry[key] for key in keys if key in entry} | {"bbox_mode": BoxMode.XYWH_ABS}
    if ids is not None:
        if entry["category_id"] not in ids:
            raise ValueError(f"{what} is of category {entry['category_id']}, which is not among its 'categories'")
        instance["category_id"] = ids[entry["category_id"]]
    if entry.get("segmentation"):
        instance["segmentation"] = _segmentation(entry["segmentation"])
    return instance


def _segmentation(value: Any) -> Any:
    """The polygons with at least three corners, or a compressed RLE."""
    if isinstance(value, list):
        return [polygon for polygon in value if len(polygon) % 2 == 0 and len(polygon) >= _MIN_COORDINATES]
    return coco.frPyObjects(value, *value["size"]) if isinstance(value["counts"], list) else value


def _drop_degenerate_instances(path: str, records: Entries) -> None:
    """Drop instances that had polygons, all of them with fewer than three corners."""
    dropped = 0
    for record in records:
        kept = [each for each in record["annotations"] if each.get("segmentation") != []]
        dropped += len(record["annotations"]) - len(kept)
        record["annotations"] = kept
    if dropped:
        logger.warning(f"Dropped {dropped} instances of {path} whose polygons have fewer than three corners")
