"""Pascal VOC's average precision, as its development kit defines it.

Corners are pixel indices from 1, both included: a width is ``xmax - xmin + 1``. Objects marked *difficult* are ignored.
As in Detectron2, scores are rounded to 3 digits and coordinates to 1, and detections are sorted by numpy's ``argsort``,
which is not stable.
"""

from __future__ import annotations

import logging
import os
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.catalog import MetadataCatalog
from ..utils import comm
from ..utils.file_io import PathManager
from .evaluator import DatasetEvaluator, Inputs

_logger = logging.getLogger(__name__)

THRESHOLDS = range(50, 100, 5)  # IoU in per cent
Curve = tuple[
    NDArray[np.float64], NDArray[np.float64]
]  # recall and precision after each detection, by descending score


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """``{"bbox": {"AP", "AP50", "AP75"}}`` in per cent, averaged over the classes, AP also over ten IoU thresholds.

    The metadata must have ``dirname``, ``split``, ``thing_classes`` and ``year``, which selects the metric: 2007 that
    of eleven points, 2012 the area under the curve.
    """

    def __init__(self, dataset_name: str) -> None:
        meta = MetadataCatalog.get(dataset_name)
        if meta.year not in (2007, 2012):
            raise ValueError(
                f"VOC has metrics for the years 2007 and 2012, but data set '{dataset_name}' has the year {meta.year}"
            )
        self._dataset_name = dataset_name
        self._class_names: Sequence[str] = meta.thing_classes
        self._is_2007 = meta.year == 2007
        annotations = PathManager.get_local_path(os.path.join(meta.dirname, "Annotations/"))
        self._anno_file_template = os.path.join(annotations, "{}.xml")
        self._image_set_path = os.path.join(meta.dirname, "ImageSets", "Main", f"{meta.split}.txt")
        self.reset()

    def reset(self) -> None:
        self._predictions: defaultdict[int, list[str]] = defaultdict(list)  # text lines of each class

    def process(self, inputs: Inputs, outputs: Inputs) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            corners = instances.pred_boxes.tensor + torch.tensor([1.0, 1.0, 0.0, 0.0])  # the loader subtracted this 1
            fields = (corners, instances.scores, instances.pred_classes)
            for box, score, label in zip(*(field.tolist() for field in fields), strict=True):
                place = " ".join(f"{each:.1f}" for each in box)
                self._predictions[label].append(f"{image['image_id']} {score:.3f} {place}")

    def evaluate(self) -> dict[str, Any] | None:
        """The results, on rank 0; called on every rank."""
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        metric = "2007" if self._is_2007 else "2012"
        _logger.info(f"Evaluating {self._dataset_name} with VOC's metric of {metric} in Python, not in Matlab")
        aps = np.zeros((len(THRESHOLDS), len(self._class_names)))
        for label, name in enumerate(self._class_names):
            lines = [line for predictions in gathered for line in predictions.get(label, [])]
            matches = _match(lines, self._anno_file_template, self._image_set_path, name)
            for row, threshold in enumerate(THRESHOLDS):
                aps[row, label] = 100 * voc_ap(*_curve(matches, threshold / 100), self._is_2007)
        means = aps.mean(axis=1)
        return {"bbox": {"AP": means.mean(), "AP50": means[0], "AP75": means[5]}}


def voc_eval(
    detpath: str,
    annopath: str,
    imagesetfile: str,
    classname: str,
    ovthresh: float = 0.5,
    use_07_metric: bool = False,
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Recall and precision of a class after each detection, by descending score, and its average precision.

    ``detpath`` and ``annopath`` are path templates for a class and an image. A line of detections is
    ``image score xmin ymin xmax ymax``.
    """
    with open(detpath.format(classname)) as file:
        lines = file.read().splitlines()
    recall, precision = _curve(_match(lines, annopath, imagesetfile, classname), ovthresh)
    return recall, precision, voc_ap(recall, precision, use_07_metric)


def voc_ap(rec: NDArray[np.float64], prec: NDArray[np.float64], use_07_metric: bool = False) -> float:
    """Average precision: the mean of the interpolated precision at eleven recalls, or the area under its curve.

    >>> float(voc_ap(np.array([0.5, 1.0]), np.array([1.0, 0.5])))
    0.75
    """
    if use_07_metric:
        return sum(prec[rec >= level].max(initial=0.0) / 11 for level in np.arange(0.0, 1.1, 0.1))
    recall = np.concatenate([[0.0], rec, [1.0]])
    best_from = np.maximum.accumulate(np.concatenate([prec, [0.0]])[::-1])[::-1]
    return np.sum(np.diff(recall) * best_from)


@cache
def parse_rec(filename: str) -> list[dict[str, Any]]:
    """The objects of an annotation file; cached."""
    try:
        with PathManager.open(filename, "rb") as file:
            return [
                {
                    "name": _text(each, "name"),
                    "pose": _text(each, "pose"),
                    "truncated": int(_text(each, "truncated")),
                    "difficult": int(_text(each, "difficult")),
                    "bbox": [int(_text(each, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")],
                }
                for each in ET.parse(file).findall("object")
            ]
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"{filename} is no VOC annotation: {error}") from error


def _text(element: ET.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"an <object> has no <{path}>")
    return text


@dataclass(frozen=True)
class _Matches:
    """D detections of a class, by descending score, each with the one of M objects with the largest IoU."""

    overlap: NDArray[np.float64]  # [D], -inf if the image has no object
    object: NDArray[np.int64]  # [D]
    difficult: NDArray[np.bool_]  # [M]


def _match(lines: Sequence[str], annopath: str, imagesetfile: str, classname: str) -> _Matches:
    with PathManager.open(imagesetfile, encoding="utf-8") as file:
        images = [line.strip() for line in file]
    objects: list[dict[str, Any]] = []
    places: dict[str, slice] = {}
    for image in images:
        start = len(objects)
        objects += [each for each in parse_rec(annopath.format(image)) if each["name"] == classname]
        places[image] = slice(start, len(objects))
    corners = np.array([each["bbox"] for each in objects], dtype=float).reshape(-1, 4)

    detections = [line.split() for line in lines]
    order = np.argsort([-float(score) for _, score, *_ in detections])
    overlap, nearest = np.full(len(order), -np.inf), np.zeros(len(order), dtype=np.int64)
    for rank, index in enumerate(order):
        image, _, *box = detections[index]
        if image not in places:
            raise ValueError(f"there are detections in image '{image}', which {imagesetfile} does not list")
        overlaps = _overlaps(np.array(box, dtype=float), corners[places[image]])
        if len(overlaps):
            overlap[rank], nearest[rank] = overlaps.max(), places[image].start + overlaps.argmax()
    return _Matches(overlap, nearest, np.array([each["difficult"] for each in objects], dtype=bool))


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU [M] of a box [4] with boxes [M, 4], with inclusive corners."""

    def area(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        return (corners[..., 2:] - corners[..., :2] + 1).prod(axis=-1)

    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + 1
    shared = np.maximum(sides, 0).prod(axis=1)
    return shared / (area(box) + area(others) - shared)


def _curve(matches: _Matches, threshold: float) -> Curve:
    """The first detection with an IoU above the threshold is an object's true positive; others are false positives."""
    hits = np.flatnonzero(matches.overlap > threshold)
    is_difficult = matches.difficult[matches.object[hits]]
    candidates = hits[~is_difficult]
    _, first = np.unique(matches.object[candidates], return_index=True)
    found, wrong = np.zeros(len(matches.overlap)), np.ones(len(matches.overlap))
    found[candidates[first]] = 1
    wrong[candidates[first]] = 0
    wrong[hits[is_difficult]] = 0
    found, wrong = found.cumsum(), wrong.cumsum()
    with np.errstate(invalid="ignore"):  # without objects, recall is NaN
        recall = found / np.sum(~matches.difficult)
    return recall, found / np.maximum(found + wrong, np.finfo(np.float64).eps)
