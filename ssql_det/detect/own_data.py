"""A user's own data in COCO's format: a data set whose name says where it lies.

``coco:IMAGES:FILE.json`` may stand wherever a config names a data set. So the config that a run saves finds its data
again, in every command and every process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ssql_det.checkdata.coco import check_coco_file
from ssql_det.core.errors import UserError
from ssql_det.d2 import DatasetCatalog, MetadataCatalog, register_coco_instances

_PREFIX = "coco:"


def own_name(given: str) -> str:
    """The name of the data that a command calls ``IMAGES:FILE.json``.

    >>> own_name("photos:labels.json")
    'coco:/home/ada/photos:/home/ada/labels.json'
    """
    images, _, file = given.rpartition(":")
    if not images or not file:
        raise UserError(f"own data are IMAGES:FILE.json, a folder and a file, as photos:labels.json; got {given!r}")
    return _PREFIX + ":".join(os.path.realpath(os.path.expanduser(each)) for each in (images, file))


def is_own(name: str) -> bool:
    return name.startswith(_PREFIX)


def row_name(name: str) -> str:
    """How rows call a data set: own data without the place on this machine.

    >>> row_name("coco:/home/ada/photos:/home/ada/labels.json"), row_name("voc_2007_test")
    ('coco:photos:labels.json', 'voc_2007_test')
    """
    return ":".join(part.rpartition("/")[2] for part in name.split(":")) if is_own(name) else name


def register_own(name: str) -> None:
    """Make the name known to the engine, with the classes of its file in the order of their ids."""
    if name in DatasetCatalog:
        return
    images, file = _places(name)
    classes = _classes(file)
    register_coco_instances(name, {}, str(file), str(images))
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = list(classes.values())
    metadata.thing_dataset_id_to_contiguous_id = {number: index for index, number in enumerate(classes)}


def classes_of(name: str) -> list[str]:
    register_own(name)
    return list(MetadataCatalog.get(name).thing_classes)


def require_fit(name: str) -> None:
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
