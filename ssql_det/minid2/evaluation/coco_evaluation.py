"""COCO's average precision of boxes and masks, computed by pycocotools."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate  # type: ignore[import-untyped]

from ..config import CfgNode
from ..data.catalog import MetadataCatalog
from ..structures import BoxMode, Instances
from ..utils import comm
from ..utils.file_io import PathManager
from ..utils.logger import create_small_table
from .evaluator import DatasetEvaluator, Inputs

_logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
COLUMNS = 3  # classes per row of a table

Results = list[dict[str, Any]]  # in COCO's result format


class COCOEvaluator(DatasetEvaluator):
    """``METRICS`` of each task, and ``AP-<class>`` of each class, in per cent; NaN if there are no objects.

    The metadata must have ``json_file``. The default tasks are those of ``"bbox"`` and ``"segm"`` for which there are
    predictions. These are written to ``output_dir`` as ``instances_predictions.pth`` and, in COCO's format, as
    ``coco_instances_results.json``. A ``max_dets_per_image`` below 10 counts as 10. ``use_fast_impl`` and
    ``allow_cached_coco`` are ignored: pycocotools is always used, and data sets are not converted.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        allow_cached_coco: bool = True,
    ) -> None:
        self._tasks = None if isinstance(tasks, CfgNode) else tasks  # older code passes a config here
        unknown = set(self._tasks or ()) - {"bbox", "segm"}
        if unknown:
            raise ValueError(f"COCOEvaluator supports the tasks 'bbox' and 'segm', not {sorted(unknown)}")
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        self._metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(self._metadata, "json_file"):
            raise ValueError(
                f"the metadata of data set '{dataset_name}' have no json_file: write its annotations in COCO's format "
                "and register them with register_coco_instances"
            )
        self._coco_api = _read_annotations(PathManager.get_local_path(self._metadata.json_file))
        self._do_evaluation = "annotations" in self._coco_api.dataset  # COCO's test sets have none
        self.reset()

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: Inputs, outputs: Inputs) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            if "proposals" in output:
                raise NotImplementedError("minid2's COCOEvaluator evaluates detections, not proposals")
            if "instances" in output:
                detections = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
                self._predictions.append({"image_id": image["image_id"], "instances": detections})

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """The results on all images or on ``img_ids``, on rank 0; every rank calls it, the others get an empty dict."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(chain.from_iterable(comm.gather(predictions)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            _logger.warning("There are no predictions to evaluate.")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            with PathManager.open(os.path.join(self._output_dir, "instances_predictions.pth"), "wb") as file:
                torch.save(predictions, file)
        detections = self._with_dataset_ids(chain.from_iterable(each["instances"] for each in predictions))
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            _logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(detections))
        if not self._do_evaluation:
            _logger.info(f"{self._metadata.json_file} has no annotations to evaluate with.")
            return {}
        masked = any("segmentation" in each for each in detections)
        tasks = self._tasks or (["bbox", "segm"] if masked else ["bbox"])
        return {task: self._evaluate_task(detections, task, img_ids) for task in sorted(tasks)}

    def _with_dataset_ids(self, detections: Iterable[dict[str, Any]]) -> Results:
        """Map contiguous class ids to the data set's category ids."""
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return list(detections)
        ids = {own: category for category, own in contiguous.items()}
        assert sorted(ids) == list(range(len(contiguous))), f"class ids are not 0, 1, ...: {contiguous}"
        results = []
        for each in detections:
            if each["category_id"] not in ids:
                raise ValueError(
                    f"a detection is of class {each['category_id']}, but data set '{self._metadata.name}' has only "
                    f"{len(ids)} classes: compare it with MODEL.ROI_HEADS.NUM_CLASSES"
                )
            results.append({**each, "category_id": ids[each["category_id"]]})
        return results

    def _evaluate_task(self, detections: Results, task: str, img_ids: Sequence[int] | None) -> dict[str, float]:
        if not detections:  # pycocotools fails with an empty list
            _logger.warning("The model detects nothing.")
            return dict.fromkeys(METRICS, float("nan"))
        unknown = {each["image_id"] for each in detections} - self._coco_api.imgs.keys()
        if unknown:
            raise ValueError(
                f"there are detections in {len(unknown)} images that {self._metadata.json_file} does not list, "
                f"such as {next(iter(unknown))!r}"
            )
        if task == "segm" and not all("segmentation" in each for each in detections):
            raise ValueError("the task 'segm' needs masks, but some detections have none: see MODEL.MASK_ON")
        _logger.info(f"Evaluating {task} with pycocotools ...")
        precision = _precision(self._coco_api, detections, task, self._max_dets_per_image, img_ids)
        results = _metrics(precision)
        _logger.info(f"Evaluation results for {task}:\n{create_small_table(results)}")
        names = self._metadata.get("thing_classes") or ()
        if len(names) <= 1:
            return results
        classes = _class_metrics(precision, names)
        _logger.info(f"Per-category {task} AP:\n{_class_table(classes)}")
        return results | {f"AP-{name}": ap for name, ap in classes.items()}


def instances_to_coco_json(instances: Instances, img_id: Any) -> Results:
    """The instances of an image in COCO's result format, with masks as RLE."""
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    fields = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": boxes.tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        fields["segmentation"] = [_encode(mask) for mask in instances.pred_masks]
    return [{"image_id": img_id, **dict(zip(fields, row, strict=True))} for row in zip(*fields.values(), strict=True)]


def _encode(mask: torch.Tensor) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    return {**rle, "counts": rle["counts"].decode()}  # JSON has no bytes


def _read_annotations(path: str) -> COCO:
    try:
        with redirect_stdout(StringIO()):
            return COCO(path)
    except (ValueError, AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a COCO annotation file: {error!r}") from error


def _precision(
    coco: COCO, detections: Results, task: str, max_dets: list[int], img_ids: Sequence[int] | None
) -> NDArray[np.float64]:
    """Precision [IoU, recall, category, area range] for the largest number of detections; -1 without objects."""
    # Copied because pycocotools changes its input; without boxes, because it would compute a mask's area from the box.
    hidden = "bbox" if task == "segm" else None
    copies = [{name: value for name, value in each.items() if name != hidden} for each in detections]
    with redirect_stdout(StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(copies), task)
        evaluation.params.maxDets = max_dets
        if img_ids is not None:
            evaluation.params.imgIds = img_ids
        evaluation.evaluate()
        evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"]
    return precision[..., -1]


def _metrics(precision: NDArray[np.float64]) -> dict[str, float]:
    every, small, medium, large = precision.transpose(3, 0, 1, 2)
    parts = (every, every[0], every[5], small, medium, large)
    return {name: _mean(part) for name, part in zip(METRICS, parts, strict=True)}


def _class_metrics(precision: NDArray[np.float64], names: Sequence[str]) -> dict[str, float]:
    every = precision[..., 0]
    assert len(names) == every.shape[2], f"{len(names)} class names for {every.shape[2]} categories"
    return {name: _mean(every[:, :, index]) for index, name in enumerate(names)}


def _mean(precision: NDArray[np.float64]) -> float:
    """The mean in per cent of the entries that are not -1."""
    known = precision[precision > -1]
    return float(known.mean() * 100) if known.size else float("nan")


def _class_table(aps: dict[str, float]) -> str:
    cells = list(chain.from_iterable(aps.items()))
    width = min(2 * COLUMNS, len(cells))
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    return tabulate(rows, ["category", "AP"] * (width // 2), tablefmt="pipe", floatfmt=".3f", numalign="left")
