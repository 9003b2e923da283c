"""Compare an exported file with the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, DatasetMapper, detector_postprocess, get_detection_dataset_dicts
from ssql_det.deploy.detector import Detector
from ssql_det.deploy.evaluation import ExportedDetector
from ssql_det.deploy.session import INPUT_NAME, open_session
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import Batch, CalibrationImages, build_evaluation_loader
from ssql_det.detect.predict import load_image
from ssql_det.images.reading import find_images, read_rgb

BOX_TOLERANCE = 1e-4  # of the longer side of the image
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-3  # of the probabilities in a box
LEAST_MASK_IOU = 0.995  # of the masks in the image
FEATURE_TOLERANCE = 1e-4  # of a backbone's features, relative to the greatest
_SAME_BOX = 0.01  # of the longer side: further apart, two boxes are two detections

T = TypeVar("T")
Array = NDArray[Any]


@dataclass(frozen=True)
class Agreement:
    """The greatest differences between an exported detector and the engine's over some images."""

    images: int
    detections: int  # of the engine
    unmatched: int  # detections that only one of the two has
    resized_differently: int  # images that the runtime and the engine resize to different pixels
    box_difference: float  # in longer sides of the image
    score_difference: float
    mask_difference: float
    mask_iou: float  # the least

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
    combine: dict[str, Any] = {"box_difference": max, "score_difference": max, "mask_difference": max, "mask_iou": min}
    return Agreement(images=len(batches), **{name: combine.get(name, sum)(columns[name]) for name in columns})


def _compare_on_image(detector: Detector, model: Any, batch: Batch) -> dict[str, float]:
    (inputs,) = batch
    resized = inputs["image"].permute(1, 2, 0).contiguous().numpy()
    height, width = inputs["height"], inputs["width"]
    with TiesByIndex():
        (expected,) = model.inference(batch, do_postprocess=False)
    expected = expected.to("cpu")
    raw = detector.detect_resized(resized)
    boxes, classes = expected.pred_boxes.tensor.numpy(), expected.pred_classes.numpy()
    longer_side = max(resized.shape[:2])
    pairs = match_detections(boxes, classes, raw.boxes, raw.classes, _SAME_BOX * longer_side)
    ours, theirs = pairs.T
    result = {
        "detections": len(boxes),
        "unmatched": len(boxes) + len(raw.boxes) - 2 * len(pairs),
        "resized_differently": "file_name" in inputs
        and _is_resized_differently(detector, inputs["file_name"], resized),
        "box_difference": _find_difference(boxes[ours], raw.boxes[theirs]) / longer_side,
        "score_difference": _find_difference(expected.scores.numpy()[ours], raw.scores[theirs]),
        "mask_difference": 0.0,
        "mask_iou": 1.0,
    }
    if raw.masks is not None:
        masks = expected.pred_masks[:, 0].numpy()
        result["mask_difference"] = _find_difference(masks[ours], raw.masks[theirs])
        pasted, found = detector_postprocess(expected, height, width), detector.finish(raw, height, width)
        boxes, classes = pasted.pred_boxes.tensor.numpy(), pasted.pred_classes.numpy()
        ours, theirs = match_detections(boxes, classes, found.boxes, found.classes, _SAME_BOX * max(height, width)).T
        assert found.masks is not None
        result["mask_iou"] = _find_least_iou(pasted.pred_masks.numpy().astype(bool)[ours], found.masks[theirs])
    return result


class TiesByIndex(TorchFunctionMode):
    """Inside, ``sort`` and ``topk`` put the lower index first where values are equal, as those of ONNX do.

    torch leaves their order open, and so which of several boxes with the same score the engine takes: on an even
    background many scores are the same.

    >>> with TiesByIndex():
    ...     torch.tensor([1.0, 2.0, 1.0, 2.0]).topk(3)[1]
    tensor([1, 3, 0])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "topk":
            return self._topk(*args, **(kwargs or {}))
        if name == "sort":
            return self._sort(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
        return torch.sort(x, dim=dim, descending=descending, stable=True)

    @classmethod
    def _topk(cls, x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, ...]:
        return tuple(each.narrow(dim, 0, k) for each in cls._sort(x, dim, descending=largest))


def _is_resized_differently(detector: Detector, file_name: str, resized: Array) -> bool:
    return not np.array_equal(detector.prepare(read_rgb(Path(file_name))), resized)


def match_detections(boxes: Array, classes: Array, other_boxes: Array, other_classes: Array, distance: float) -> Array:
    """Pairs of indices [M, 2] of detections with the same class and close boxes, each in one pair at most.

    No coordinate of a pair's boxes differs by ``distance`` or more; of several candidates the closest is taken.

    >>> boxes = np.array([[0, 0, 4, 4], [0, 0, 5, 5]])
    >>> match_detections(boxes, np.array([1, 1]), boxes[::-1], np.array([1, 1]), distance=2).tolist()
    [[0, 1], [1, 0]]
    """
    distances = np.abs(boxes[:, None] - other_boxes[None]).max(axis=2, initial=0)
    distances[classes[:, None] != other_classes[None]] = np.inf
    pairs = []
    while distances.size and distances.min() < distance:
        row, column = np.unravel_index(distances.argmin(), distances.shape)
        pairs.append((row, column))
        distances[row], distances[:, column] = np.inf, np.inf
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _find_difference(values: Array, others: Array) -> float:
    return float(np.abs(values - others).max(initial=0))


def _find_least_iou(masks: Array, others: Array) -> float:
    """The least IoU of pairs of masks; two empty masks agree."""
    union = (masks | others).sum(axis=(1, 2))
    common = (masks & others).sum(axis=(1, 2))
    return float((common[union > 0] / union[union > 0]).min(initial=1))


def select_check_images(cfg: CfgNode, count: int, folder: str | None = None) -> Sequence[Batch]:
    """``count`` images to compare on: evenly spread over those of ``DATASETS.TEST``, or over those of a folder."""
    if folder is not None:
        return [load_image(cfg, path) for path in spread(find_images([folder]), count)]
    if count == 0:
        return []
    for name in cfg.DATASETS.TEST:
        check_dataset(name)
    with translate_errors("the data sets in DATASETS.TEST cannot be read"):
        dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    return CalibrationImages(spread(dataset_dicts, count), DatasetMapper(cfg, is_train=False))


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items at even distances, in their order.

    >>> spread("abcdefgh", 3)
    ['a', 'c', 'f']
    """
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def compare_aps(cfg: CfgNode, detector: Detector, model: nn.Module) -> dict[str, tuple[float, float]]:
    """AP on ``DATASETS.TEST``: of the exported detector, and of the engine's with :class:`TiesByIndex`."""
    metrics: dict[str, tuple[float, float]] = {}
    for name in cfg.DATASETS.TEST:
        loader = build_evaluation_loader(cfg, name)
        found = evaluate(ExportedDetector(detector), loader, name, is_fast=False)
        with TiesByIndex():
            expected = evaluate(model, loader, name, is_fast=False)
        metrics |= {f"{name}/{key}": (found[key], expected[key]) for key in expected if key.endswith("/AP")}
    return metrics


@torch.no_grad()
def compare_features(path: Path, graph: nn.Module, size: int, count: int) -> dict[str, Any]:
    """Compare an exported backbone with its ``graph`` on ``count`` images of noise, ``size`` x ``size`` pixels."""
    session, _ = open_session(path)
    generator = np.random.default_rng(0)
    worst = 0.0
    for _ in range(count):
        image = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        expected = graph(torch.from_numpy(image)).numpy()
        (found,) = session.run(None, {INPUT_NAME: image})
        worst = max(worst, _find_difference(expected, found) / float(np.abs(expected).max()))
    return {"agrees": worst <= FEATURE_TOLERANCE, "images": count, "feature_difference": worst} if count else {}
