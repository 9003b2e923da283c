"""Check data sets by name before a run, and register custom data sets in COCO's format.

The name of a custom data set, ``coco:IMAGE_FOLDER:FILE.json``, holds its paths. So a saved config that contains such a
name works in every later command, which registers the data set when it reads the name.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ssql_det.checkdata.coco import check_coco_file, check_readable
from ssql_det.core.errors import UserError, did_you_mean
from ssql_det.d2 import DatasetCatalog, MetadataCatalog, register_coco_instances
from ssql_det.detect.engine_errors import translate_errors

_CUSTOM_PREFIX = "coco:"  # of the names of custom data sets


def check_dataset(name: str) -> None:
    """Raise a UserError for an unknown name, for toy data that do not exist yet, and for COCO annotations that must not
    be read; register a custom data set. Call this before the engine reads a data set."""
    if not isinstance(name, str):  # a config can hold DATASETS.TRAIN (5,)
        raise UserError(f"the name of a data set must be a string, got {name!r}")
    if is_custom(name):
        register_custom_dataset(name)
    if name not in DatasetCatalog.list():
        raise UserError(f"unknown data set {name!r}{did_you_mean(name, DatasetCatalog.list())}")
    if name.startswith("toy_"):
        root = Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
        if not (root / "manifest.json").is_file():
            raise UserError(
                f"there are no toy data in {root}; make them with `ssql-det make-toy-data {root}`, "
                "or set DETECTRON2_DATASETS to the folder that has them"
            )
    annotation_file = getattr(MetadataCatalog.get(name), "json_file", None)
    if annotation_file is not None and os.path.isfile(annotation_file):  # else the engine says where it looks for it
        check_readable(Path(annotation_file))


def hash_annotations(name: str) -> str:
    """SHA-256 of a data set's image file names, image sizes, class indices and boxes.

    Pixels, masks, class names and the folders of the images are not hashed.
    """
    check_dataset(name)
    digest = hashlib.sha256()
    with translate_errors(f"the data set {name} cannot be read"):
        for dataset_dict in DatasetCatalog.get(name):
            annotations = dataset_dict.get("annotations", ())
            objects = [(annotation["category_id"], *annotation["bbox"]) for annotation in annotations]
            size = dataset_dict.get("height"), dataset_dict.get("width")
            digest.update(repr((Path(dataset_dict["file_name"]).name, size, objects)).encode())
    return digest.hexdigest()


def make_custom_name(paths: str) -> str:
    """The name, with absolute paths, of the custom data set that a command line gives as ``IMAGES:FILE.json``.

    >>> make_custom_name("/home/ada/photos:/home/ada/labels.json")
    'coco:/home/ada/photos:/home/ada/labels.json'
    """
    image_folder, _, annotation_file = paths.rpartition(":")
    if not image_folder or not annotation_file:
        raise UserError(
            "a custom data set must be IMAGES:FILE.json, an image folder and an annotation file, such as "
            f"photos:labels.json; got {paths!r}"
        )
    return _CUSTOM_PREFIX + ":".join(
        os.path.realpath(os.path.expanduser(path)) for path in (image_folder, annotation_file)
    )


def is_custom(name: str) -> bool:
    return name.startswith(_CUSTOM_PREFIX)


def shorten_dataset_name(name: str) -> str:
    """The name of a data set in result rows: a custom data set is named without the parents of its paths.

    >>> shorten_dataset_name("coco:/home/ada/photos:/home/ada/labels.json"), shorten_dataset_name("voc_2007_test")
    ('coco:photos:labels.json', 'voc_2007_test')
    """
    return ":".join(part.rpartition("/")[2] for part in name.split(":")) if is_custom(name) else name


def register_custom_dataset(name: str) -> None:
    """Register a custom data set with the engine (Detectron2 or its stand-in), with classes in order of their ids."""
    if name in DatasetCatalog:
        return
    image_folder, annotation_file = _split_name(name)
    classes = _read_classes(annotation_file)
    register_coco_instances(name, {}, str(annotation_file), str(image_folder))
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = list(classes.values())
    metadata.thing_dataset_id_to_contiguous_id = {class_id: index for index, class_id in enumerate(classes)}


def load_class_names(name: str) -> list[str]:
    """The class names of a custom data set, which is registered if it is not yet."""
    register_custom_dataset(name)
    return list(MetadataCatalog.get(name).thing_classes)


def check_custom_annotations(name: str) -> None:
    """Raise the first error that ``ssql-det check-data`` finds in the annotations; images are not opened."""
    image_folder, annotation_file = _split_name(name)
    findings = check_coco_file(annotation_file, image_folder, name).findings
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        other_errors = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
        command = f"ssql-det check-data {image_folder} --dataset {annotation_file}"
        raise UserError(f"{errors[0].where}: {errors[0].problem}{other_errors}; `{command}` lists all errors")


def _split_name(name: str) -> tuple[Path, Path]:
    """The image folder and the annotation file in the name of a custom data set, ``coco:IMAGES:FILE.json``."""
    image_folder, _, annotation_file = name.removeprefix(_CUSTOM_PREFIX).rpartition(":")
    if not Path(image_folder).is_dir():
        raise UserError(f"no image folder {image_folder or name!r}; a custom data set must be IMAGES:FILE.json")
    if not Path(annotation_file).is_file():
        raise UserError(
            f"no annotation file {annotation_file}; a custom data set must be IMAGES:FILE.json in COCO's format"
        )
    return Path(image_folder), Path(annotation_file)


def _read_classes(file: Path) -> dict[int, str]:
    """Class names by category id, in the order of the ids."""
    try:
        content: Any = json.loads(file.read_text("utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        classes = {class_id: names[class_id] for class_id in sorted(names)}
    except (ValueError, RecursionError, TypeError, KeyError) as failure:
        raise UserError(f"{file} is not in COCO's instances format; see `ssql-det check-data --help`") from failure
    if not classes or not all(isinstance(class_name, str) for class_name in classes.values()):
        raise UserError(
            f"{file} has no class names; its list 'categories' must have entries such as {{'id': 1, 'name': 'cat'}}"
        )
    return classes
