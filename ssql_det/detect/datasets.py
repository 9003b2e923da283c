"""Data sets and their images to calibrate with and to evaluate on; decoded once where memory allows.

A user's own data in COCO's format have a name that says where they lie, ``coco:IMAGES:FILE.json``, which may stand
wherever a config names a data set. So the config that a run saves finds its data again, in every command and process.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ssql_det.checkdata.coco import check_coco_file
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.d2 import (
    DatasetCatalog,
    MetadataCatalog,
    register_coco_instances,
)
from ssql_det.detect.engine_errors import translate_errors

_PREFIX = "coco:"  # of the name of own data


def check_dataset(name: str) -> None:
    """Refuse a name that nobody registered, and toy data that nobody made. Own data are registered by their name."""
    if not isinstance(name, str):  # a config may say (5,)
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


def make_custom_name(given: str) -> str:
    """The name of the data that a command calls ``IMAGES:FILE.json``.

    >>> make_custom_name("photos:labels.json")
    'coco:/home/ada/photos:/home/ada/labels.json'
    """
    images, _, file = given.rpartition(":")
    if not images or not file:
        raise UserError(f"own data are IMAGES:FILE.json, a folder and a file, as photos:labels.json; got {given!r}")
    return _PREFIX + ":".join(os.path.realpath(os.path.expanduser(each)) for each in (images, file))


def is_custom(name: str) -> bool:
    return name.startswith(_PREFIX)


def shorten_dataset_name(name: str) -> str:
    """How rows call a data set: own data without the place on this machine.

    >>> shorten_dataset_name("coco:/home/ada/photos:/home/ada/labels.json"), shorten_dataset_name("voc_2007_test")
    ('coco:photos:labels.json', 'voc_2007_test')
    """
    return ":".join(part.rpartition("/")[2] for part in name.split(":")) if is_custom(name) else name


def register_custom_dataset(name: str) -> None:
    """Make the name known to the engine, with the classes of its file in the order of their ids."""
    if name in DatasetCatalog:
        return
    images, file = _places(name)
    classes = _classes(file)
    register_coco_instances(name, {}, str(file), str(images))
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = list(classes.values())
    metadata.thing_dataset_id_to_contiguous_id = {number: index for index, number in enumerate(classes)}


def load_class_names(name: str) -> list[str]:
    register_custom_dataset(name)
    return list(MetadataCatalog.get(name).thing_classes)


def check_custom_annotations(name: str) -> None:
    """Refuse data that would end a training: what ``ssql-det check-data`` finds, but for the images' own files."""
    images, file = _places(name)
    faults = [finding for finding in check_coco_file(file, images, name).findings if finding.fatal]
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(
            f"{faults[0].where}: {faults[0].what}{more}; `ssql-det check-data {images} --dataset {file}` shows all"
        )


def _places(name: str) -> tuple[Path, Path]:
    images, _, file = name.removeprefix(_PREFIX).rpartition(":")
    if not Path(images).is_dir():
        raise UserError(f"there is no folder of images {images or name!r}; own data are IMAGES:FILE.json")
    if not Path(file).is_file():
        raise UserError(f"there is no file {file}; own data are IMAGES:FILE.json, with annotations in COCO's format")
    return Path(images), Path(file)


def _classes(file: Path) -> dict[int, str]:
    """Names by ids, in the order of the ids."""
    try:
        content: Any = json.loads(file.read_text("utf-8"))
        names = {each["id"]: each["name"] for each in content["categories"]}
        classes = {number: names[number] for number in sorted(names)}
    except (ValueError, RecursionError, TypeError, KeyError):
        raise UserError(f"{file} is not in COCO's instances format; see `ssql-det check-data --help`") from None
    if not classes or not all(isinstance(each, str) for each in classes.values()):
        raise UserError(f"{file} names no classes; its list 'categories' has to, as {{'id': 1, 'name': 'cat'}}")
    return classes


def hash_annotations(name: str) -> str:
    """What a data set asks for: its images' names and sizes, and the boxes in them. Where they lie does not matter."""
    check_dataset(name)
    content = hashlib.sha256()
    with translate_errors(f"the data set {name} cannot be read"):
        for record in DatasetCatalog.get(name):
            objects = [(each["category_id"], *each["bbox"]) for each in record.get("annotations", ())]
            size = record.get("height"), record.get("width")
            content.update(repr((Path(record["file_name"]).name, size, objects)).encode())
    return content.hexdigest()
