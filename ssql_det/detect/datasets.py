"""Data sets by name: checks before a run, and custom data sets, which need no registration.

A custom data set in COCO's format has its place for a name, ``coco:IMAGES:FILE.json``, wherever a config names a data
set. So a config that a run saved works in every later command.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ssql_det.checkdata.coco import check_coco_file
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.d2 import DatasetCatalog, MetadataCatalog, register_coco_instances
from ssql_det.detect.engine_errors import translate_errors

_PREFIX = "coco:"  # of the name of a custom data set


def check_dataset(name: str) -> None:
    """Refuse an unknown name, and toy data that were not made yet; register a custom data set."""
    if not isinstance(name, str):  # a config can hold (5,)
        raise UserError(f"a data set has a name, got {name!r}")
    if is_custom(name):
        register_custom_dataset(name)
    if name not in DatasetCatalog.list():
        raise UserError(f"there is no data set {name!r}{did_you_mean(name, DatasetCatalog.list())}")
    if name.startswith("toy_"):
        root = Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
        if not (root / "manifest.json").is_file():
            raise UserError(
                f"there are no toy data in {root}; make them with `ssql-det make-toy-data {root}`, "
                "and set DETECTRON2_DATASETS to their folder"
            )


def hash_annotations(name: str) -> str:
    """SHA-256 of a data set's image names, sizes, classes and boxes; folders are left out."""
    check_dataset(name)
    digest = hashlib.sha256()
    with translate_errors(f"the data set {name} cannot be read"):
        for record in DatasetCatalog.get(name):
            objects = [(each["category_id"], *each["bbox"]) for each in record.get("annotations", ())]
            size = record.get("height"), record.get("width")
            digest.update(repr((Path(record["file_name"]).name, size, objects)).encode())
    return digest.hexdigest()


def make_custom_name(paths: str) -> str:
    """The data set's name for ``IMAGES:FILE.json`` of a command line.

    >>> make_custom_name("/home/ada/photos:/home/ada/labels.json")
    'coco:/home/ada/photos:/home/ada/labels.json'
    """
    images, _, file = paths.rpartition(":")
    if not images or not file:
        raise UserError(
            f"a custom data set is IMAGES:FILE.json, a folder and a file, as photos:labels.json; got {paths!r}"
        )
    return _PREFIX + ":".join(os.path.realpath(os.path.expanduser(each)) for each in (images, file))


def is_custom(name: str) -> bool:
    return name.startswith(_PREFIX)


def shorten_dataset_name(name: str) -> str:
    """The name in result rows: without the folders of a custom data set.

    >>> shorten_dataset_name("coco:/home/ada/photos:/home/ada/labels.json"), shorten_dataset_name("voc_2007_test")
    ('coco:photos:labels.json', 'voc_2007_test')
    """
    return ":".join(part.rpartition("/")[2] for part in name.split(":")) if is_custom(name) else name


def register_custom_dataset(name: str) -> None:
    """Register a custom data set with the engine; its classes are in the order of their ids."""
    if name in DatasetCatalog:
        return
    images, file = _split_name(name)
    classes = _read_classes(file)
    register_coco_instances(name, {}, str(file), str(images))
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = list(classes.values())
    metadata.thing_dataset_id_to_contiguous_id = {class_id: index for index, class_id in enumerate(classes)}


def load_class_names(name: str) -> list[str]:
    register_custom_dataset(name)
    return list(MetadataCatalog.get(name).thing_classes)


def check_custom_annotations(name: str) -> None:
    """Refuse annotations that a training cannot use, as ``ssql-det check-data`` finds them; images are not opened."""
    images, file = _split_name(name)
    errors = [finding for finding in check_coco_file(file, images, name).findings if finding.is_error]
    if errors:
        more = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
        command = f"ssql-det check-data {images} --dataset {file}"
        raise UserError(f"{errors[0].where}: {errors[0].problem}{more}; `{command}` lists them all")


def _split_name(name: str) -> tuple[Path, Path]:
    images, _, file = name.removeprefix(_PREFIX).rpartition(":")
    if not Path(images).is_dir():
        raise UserError(f"there is no folder of images {images or name!r}; a custom data set is IMAGES:FILE.json")
    if not Path(file).is_file():
        raise UserError(f"there is no annotation file {file}; a custom data set is IMAGES:FILE.json, in COCO's format")
    return Path(images), Path(file)


def _read_classes(file: Path) -> dict[int, str]:
    """Names by ids, in the order of the ids."""
    try:
        content: Any = json.loads(file.read_text("utf-8"))
        names = {each["id"]: each["name"] for each in content["categories"]}
        classes = {class_id: names[class_id] for class_id in sorted(names)}
    except (ValueError, RecursionError, TypeError, KeyError) as failure:
        raise UserError(f"{file} is not in COCO's instances format; see `ssql-det check-data --help`") from failure
    if not classes or not all(isinstance(each, str) for each in classes.values()):
        raise UserError(f"{file} has no class names; its list 'categories' needs them: {{'id': 1, 'name': 'cat'}}")
    return classes
