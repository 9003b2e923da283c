"""The engine's evaluators for COCO's and VOC's metrics, with one rule for what they treat differently.

AP is 0 where there are objects and nothing is detected. Where there are no objects it has no value (NaN): a class
without objects does not count in the mean over classes, and without small objects ``APs`` has no value.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import torch

from ssql_det.d2 import COCOEvaluator, DatasetEvaluator, MetadataCatalog, PascalVOCDetectionEvaluator
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_checks import COCO_TYPE

_ALL_AREAS = (0, 1e5**2)  # in pixels; those of pycocotools
_AREAS = {"AP": _ALL_AREAS, "AP50": _ALL_AREAS, "AP75": _ALL_AREAS}
_AREAS |= {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e5**2)}

Results = dict[str, dict[str, float]]  # metrics by task


def build_evaluator(dataset: str, folder: str) -> DatasetEvaluator:
    """An evaluator for a data set; the engine may write files into the folder."""
    with translate_errors(f"the annotations of {dataset} cannot be read"):
        if MetadataCatalog.get(dataset).evaluator_type == COCO_TYPE:
            return CocoEvaluator(dataset, folder)
        return VocEvaluator(dataset)


class CocoEvaluator(DatasetEvaluator):
    """COCO's metrics; if nothing is detected in the whole data set, the engine alone gives NaN, and none for masks."""

    def __init__(self, dataset: str, folder: str) -> None:
        self._engine = COCOEvaluator(dataset, output_dir=folder)
        self._annotation_file = MetadataCatalog.get(dataset).json_file
        self._has_masks = False

    def reset(self) -> None:
        self._engine.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._has_masks |= any(output["instances"].has("pred_masks") for output in outputs)
        self._engine.process(inputs, outputs)

    def evaluate(self) -> Results:
        results: Results = self._engine.evaluate() or {}  # empty but on rank 0
        if not results or not math.isnan(results["bbox"]["AP"]):
            return results
        areas = self._find_areas()
        metrics = {
            name: 0.0 if any(least <= area <= most for area in areas) else math.nan
            for name, (least, most) in _AREAS.items()
        }
        return {"bbox": metrics} | ({"segm": metrics} if self._has_masks else {})

    def _find_areas(self) -> list[float]:
        """Of the objects that count: no crowds."""
        document = json.loads(Path(self._annotation_file).read_text("utf-8"))
        images = {image["id"] for image in document["images"]}
        return [each["area"] for each in document["annotations"] if each["image_id"] in images and not each["iscrowd"]]


class VocEvaluator(DatasetEvaluator):
    """VOC's metrics; the engine alone counts a class without objects as an AP of 0, or NaN."""

    def __init__(self, dataset: str) -> None:
        self._engine = PascalVOCDetectionEvaluator(dataset)
        metadata = MetadataCatalog.get(dataset)
        names = _find_classes(metadata.dirname, metadata.split)
        self._has_objects = torch.tensor([name in names for name in metadata.thing_classes])

    def reset(self) -> None:
        self._engine.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        found = [output["instances"].to("cpu") for output in outputs]
        counted = [{"instances": each[self._has_objects[each.pred_classes]]} for each in found]
        self._engine.process(inputs, counted)

    def evaluate(self) -> Results | None:
        results: Results | None = self._engine.evaluate()  # on rank 0
        if results is None or self._has_objects.all():
            return results
        share = self._has_objects.double().mean().item()  # of the classes; the others have an AP of 0
        return {
            task: {name: value / share if share else math.nan for name, value in metrics.items()}
            for task, metrics in results.items()
        }


@functools.cache
def _find_classes(folder: str, split: str) -> set[str | None]:
    """The classes of objects that are not marked difficult."""
    names = (Path(folder) / "ImageSets" / "Main" / f"{split}.txt").read_text("utf-8").splitlines()
    roots = (Xml.parse(Path(folder) / "Annotations" / f"{name.strip()}.xml") for name in names)
    objects = (element for root in roots for element in root.findall("object"))
    return {element.findtext("name") for element in objects if not int(element.findtext("difficult") or 0)}
