"""Check a data set before an evaluation: its number of classes, and the fields that COCO's and VOC's metrics read."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from pycocotools import mask as coco_mask

from ssql_det.checkdata.coco import check_readable
from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, MetadataCatalog
from ssql_det.detect.engine_errors import translate_errors

COCO_TYPE, VOC_TYPE = "coco", "pascal_voc"  # evaluator_type in Detectron2's metadata of a data set
_IS_VALID: dict[str, Callable[[Any], bool]] = {  # what COCO's metrics need of an annotation
    "id": lambda value: type(value) is int and abs(value) < 2**53,  # it becomes a floating-point number
    "area": lambda value: isinstance(value, (int, float)) and 0 <= value < 1e12,
    "iscrowd": lambda value: value in (0, 1),
    "bbox": lambda value: value is not None,  # check_readable checked its numbers
}
_WHOLE_NUMBER = re.compile(r"\s*[+-]?\d{1,9}\s*")
_VOC_INTEGER_TAGS = ("truncated", "difficult", "bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
_logger = logging.getLogger(__name__)


def check_evaluation_dataset(cfg: CfgNode, name: str) -> None:
    """Raise a UserError if the detector of this config cannot be evaluated on the data set."""
    metadata = MetadataCatalog.get(name)
    evaluator_type = getattr(metadata, "evaluator_type", None)
    if evaluator_type not in (COCO_TYPE, VOC_TYPE):
        raise UserError(f"{name} has the evaluator_type {evaluator_type!r}; supported are {COCO_TYPE} and {VOC_TYPE}")
    if evaluator_type == VOC_TYPE:
        _check_voc(Path(metadata.dirname), metadata.split)
        return
    class_ids = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    # With more classes, those that the detector does not know count as not found.
    if class_ids is not None and len(class_ids) < num_classes:
        raise UserError(
            f"{name} has {len(class_ids)} classes and MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; "
            "evaluate on a data set with the classes that the detector was trained on"
        )
    if hasattr(metadata, "json_file"):
        _check_coco(metadata.json_file, cfg.MODEL.MASK_ON)


def _check_coco(file: str, needs_masks: bool) -> None:
    check_readable(Path(file))
    document = json.loads(Path(file).read_text("utf-8"))
    images = {image["id"]: image for image in document["images"]}
    for annotation in document.get("annotations", ()):  # COCO's test-dev has none
        location = f"{file}: annotation {annotation['id']}"
        invalid_keys = [key for key, is_valid in _IS_VALID.items() if not is_valid(annotation.get(key))]
        if invalid_keys:
            raise UserError(f"{location} has no valid {invalid_keys[0]}, which COCO's metrics need")
        if annotation["id"] == 0:
            _logger.warning(
                "%s: COCO's metrics never match an annotation with the id 0; number annotations from 1", file
            )
        if needs_masks and annotation["image_id"] in images:
            _check_mask(location, annotation, images[annotation["image_id"]])


def _check_mask(location: str, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> None:
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        raise UserError(f"{location} has no segmentation; to evaluate boxes only, set MODEL.MASK_ON False")
    with translate_errors(f"{location} has an invalid segmentation"):
        if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
            coco_mask.frPyObjects(segmentation, image["height"], image["width"])


def _check_voc(folder: Path, split: str) -> None:
    """Check what Detectron2's VOC evaluator reads: every line of the split's list, and the tags of every object.

    Its data loader accepts more: it skips empty lines, reads only the names and boxes of objects, and boxes may have
    decimals.
    """
    list_file = folder / "ImageSets" / "Main" / f"{split}.txt"
    with translate_errors(f"{list_file} cannot be read"):
        names = [line.strip() for line in list_file.read_text("utf-8").splitlines()]
    if "" in names:
        raise UserError(f"{list_file}: line {names.index('') + 1} is empty; remove it")
    for name in names:
        file = folder / "Annotations" / f"{name}.xml"
        with translate_errors(f"{file} cannot be read"):
            objects = Xml.parse(file).findall("object")
        for object_number, element in enumerate(objects, start=1):
            for tag in ("name", "pose"):
                if element.findtext(tag) is None:
                    raise UserError(f"{file}: object {object_number} has no {tag}, which VOC's metric needs")
            for tag in _VOC_INTEGER_TAGS:
                text = element.findtext(tag) or ""
                if not _WHOLE_NUMBER.fullmatch(text):
                    raise UserError(
                        f"{file}: object {object_number} has {tag} {text!r}; VOC's metric needs a whole number"
                    )
