"""Compare an exported file with the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, Instances, detector_postprocess
from ssql_det.deploy.detector import Detector, RawDetections
from ssql_det.deploy.evaluation import ExportedDetector
from ssql_det.deploy.exact_selection import exact_selection
from ssql_det.deploy.session import INPUT_NAME, open_session
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import Batch, build_evaluation_loader
from ssql_det.images.reading import read_rgb

BOX_TOLERANCE = 1e-4  # of the longer side of the image
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-3  # of the probabilities in a box
LEAST_MASK_IOU = 0.995  # of the masks in the image
AP_TOLERANCE = 0.05  # in points
FEATURE_TOLERANCE = 1e-4  # of a backbone's features, relative to the greatest
_SAME_BOX = 0.01  # of the longer side: further apart, two boxes are two detections
_TINY = 1e-12

Array = NDArray[Any]


@dataclass(frozen=True)
class Agreement:
    """The greatest differences between an exported detector and the engine's over some images."""

    images: int
    detections: int  # of the engine
    unmatched: int  # detections that only one of the two has, in the resized image or in the given one
    resized_differently: int  # images that the runtime and the engine resize to different pixels
    box_difference: float  # in longer sides of the image
    score_difference: float
    mask_difference: float
    mask_iou: float  # the least; a mask that differs in one pixel, which a rounding decides, counts as equal

    @property
    def is_close(self) -> bool:
        return (
            self.unmatched == self.resized_differently == 0
            and self.box_difference <= BOX_TOLERANCE
            and self.score_difference <= SCORE_TOLERANCE
            and self.mask_difference <= MASK_TOLERANCE
            and self.mask_iou >= LEAST_MASK_IOU
        )

    def to_dict(self) -> dict[str, Any]:
        return {"agrees": self.is_close, **asdict(self)}


@torch.no_grad()
def compare_detectors(detector: Detector, model: nn.Module, batches: Sequence[Batch]) -> Agreement:
    """Compare an exported detector with the engine's ``model`` on batches of one image each."""
    model.eval()
    differences = [_compare_on_image(detector, model, batch) for batch in track(batches, "comparing detections")]
    if not differences:
        raise UserError("there is no image to compare the exported detector on")
    columns: dict[str, Any] = {name: [each[name] for each in differences] for name in differences[0]}
    combine: dict[str, Any] = {"box_difference": np.max, "score_difference": np.max, "mask_difference": np.max}
    combine["mask_iou"] = np.min  # NumPy's keep a NaN, Python's may lose it
    values = {name: combine.get(name, np.sum)(columns[name]).item() for name in columns}
    return Agreement(images=len(batches), **values)


def _compare_on_image(detector: Detector, model: Any, batch: Batch) -> dict[str, float]:
    (inputs,) = batch
    resized = inputs["image"].permute(1, 2, 0).contiguous().numpy()
    height, width = inputs["height"], inputs["width"]
    with exact_selection():
        (instances,) = model.inference(batch, do_postprocess=False)
    expected, raw = _to_arrays(instances, resized.shape[:2]), detector.detect_resized(resized)
    in_resized = _Pairs.match(expected, raw)
    pasted = _to_arrays(detector_postprocess(instances.to("cpu"), height, width), (height, width))
    found = detector.finish(raw, height, width)
    masks: Any = found.masks  # of booleans
    in_image = _Pairs.match(pasted, RawDetections(found.boxes, found.scores, found.classes, masks, (height, width)))
    return {
        "detections": len(expected),
        "unmatched": max(in_resized.unmatched, in_image.unmatched),
        "resized_differently": "file_name" in inputs
        and _is_resized_differently(detector, inputs["file_name"], resized),
        "box_difference": np.max([in_resized.find_box_difference(), in_image.find_box_difference()]),
        "score_difference": _find_difference(in_resized.expected.scores, in_resized.found.scores),
        "mask_difference": in_resized.find_mask_difference(),
        "mask_iou": in_image.find_least_iou(),
    }


def _to_arrays(instances: Instances, size: tuple[int, int]) -> RawDetections:
    """The engine's detections. Boxes are copied: the engine scales them in place."""
    instances = instances.to("cpu")
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    masks = masks[:, 0] if masks is not None and masks.ndim == 4 else masks  # [N, 1, M, M] before they are pasted
    boxes = instances.pred_boxes.tensor.clone().numpy()
    return RawDetections(boxes, instances.scores.numpy(), instances.pred_classes.numpy(), masks, size)


@dataclass(frozen=True)
class _Pairs:
    """The engine's detections and the file's which are the same objects, in the same order."""

    expected: RawDetections
    found: RawDetections
    unmatched: int  # of both, before they were paired

    @classmethod
    def match(cls, expected: RawDetections, found: RawDetections) -> _Pairs:
        distance = _SAME_BOX * max(expected.size)
        ours, theirs = match_detections(expected.boxes, expected.classes, found.boxes, found.classes, distance).T
        return cls(expected[ours], found[theirs], len(expected) + len(found) - 2 * len(ours))

    def find_box_difference(self) -> float:
        return _find_difference(self.expected.boxes, self.found.boxes) / max(self.expected.size)

    def find_mask_difference(self) -> float:
        if self.expected.masks is None or self.found.masks is None:
            return 0.0 if self.expected.masks is self.found.masks else np.inf
        return _find_difference(self.expected.masks, self.found.masks)

    def find_least_iou(self) -> float:
        """Of masks in the image; those that differ in one pixel at most agree."""
        if self.expected.masks is None or self.found.masks is None:
            return float(self.expected.masks is self.found.masks)
        masks, others = self.expected.masks > 0, self.found.masks > 0
        differs = (masks ^ others).sum(axis=(1, 2)) > 1
        union = (masks | others).sum(axis=(1, 2))
        common = (masks & others).sum(axis=(1, 2))
        return float((common[differs] / union[differs]).min(initial=1))


def _is_resized_differently(detector: Detector, file_name: str, resized: Array) -> bool:
    return not np.array_equal(detector.prepare(read_rgb(Path(file_name))), resized)


def match_detections(boxes: Array, classes: Array, other_boxes: Array, other_classes: Array, distance: float) -> Array:
    """Pairs of indices [M, 2] of detections with the same class and close boxes, each in one pair at most.

    No coordinate of a pair's boxes differs by ``distance`` or more; of several candidates the closest is taken.

    >>> boxes = np.array([[0, 0, 4, 4], [0, 0, 5, 5]])
    >>> match_detections(boxes, np.array([1, 1]), boxes[::-1], np.array([1, 1]), distance=2).tolist()
    [[0, 1], [1, 0]]
    """
    distances = np.abs(boxes[:, None].astype(np.float64) - other_boxes[None]).max(axis=2, initial=0)
    distances[(classes[:, None] != other_classes[None]) | np.isnan(distances)] = np.inf
    pairs = []
    while distances.size and distances.min() < distance:
        row, column = np.unravel_index(distances.argmin(), distances.shape)
        pairs.append((row, column))
        distances[row], distances[:, column] = np.inf, np.inf
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _find_difference(values: Array, others: Array) -> float:
    return float(np.abs(values - others).max(initial=0))


@dataclass(frozen=True)
class ComparedAP:
    """An AP, in points, of an exported detector and of the engine's.

    >>> ComparedAP(file=36.71, engine=36.74).is_close, ComparedAP(file=float("nan"), engine=36.74).is_close
    (True, False)
    """

    file: float
    engine: float

    @property
    def is_close(self) -> bool:
        return bool(np.isclose(self.file, self.engine, rtol=0, atol=AP_TOLERANCE, equal_nan=True))


def compare_aps(cfg: CfgNode, detector: Detector, model: nn.Module) -> dict[str, ComparedAP]:
    """Each AP on ``DATASETS.TEST``; the engine detects with :func:`exact_selection`."""
    metrics: dict[str, ComparedAP] = {}
    for name in cfg.DATASETS.TEST:
        loader = build_evaluation_loader(cfg, name)
        found = evaluate(ExportedDetector(detector), loader, name, is_fast=False)
        with exact_selection():
            expected = evaluate(model, loader, name, is_fast=False)
        metrics |= {f"{name}/{key}": ComparedAP(found[key], expected[key]) for key in expected if key.endswith("/AP")}
    return metrics


def make_noise_images(sizes: Sequence[tuple[int, int]], count: int) -> list[Tensor]:
    """``count`` images of seeded noise, uint8 [height, width, 3], with these sizes in turn."""
    generator = np.random.default_rng(0)
    shapes = [(*sizes[index % len(sizes)], 3) for index in range(count)]
    return [torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


@torch.no_grad()
def compare_features(path: Path, graph: nn.Module, size: int, count: int, threads: int | None = None) -> dict[str, Any]:
    """Compare an exported backbone with its ``graph`` on ``count`` images of noise.

    They have ``size`` x ``size`` pixels; if the file takes images of any size, every second is twice as wide.
    """
    if count == 0:
        return {}
    session, _ = open_session(path, threads)
    is_of_any_size = not any(isinstance(side, int) for side in session.get_inputs()[0].shape[:2])
    sizes = [(size, size), (size, 2 * size)] if is_of_any_size else [(size, size)]
    differences = []
    for image in make_noise_images(sizes, count):
        expected = graph(image).numpy()
        (found,) = session.run(None, {INPUT_NAME: image.numpy()})
        differences.append(_find_difference(expected, found) / max(float(np.abs(expected).max(initial=0)), _TINY))
    worst = float(np.max(differences))
    return {"agrees": worst <= FEATURE_TOLERANCE, "images": count, "feature_difference": worst}
