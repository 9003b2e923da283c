"""One evaluation of a detector as it is: the engine's loop and evaluators, and metrics under plain names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.ranks import from_main
from ssql_det.d2 import (
    COCOEvaluator,
    DatasetEvaluator,
    MetadataCatalog,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from ssql_det.detect.answers import answered
from ssql_det.detect.data import Decoded
from ssql_det.detect.fast import fast


def evaluate(model: nn.Module, images: Decoded, dataset: str, scratch: str, is_fast: bool = True) -> dict[str, float]:
    """Metrics of the data set's own evaluator: ``{"bbox/AP": 41.2, "bbox/AP50": 62.0, ...}``.

    ``scratch`` is a folder for what the evaluator writes. Under a process group each rank brings its share of the
    images, and all get the metrics of all.
    """
    with answered(f"{dataset} cannot be evaluated on"), fast(model) if is_fast else nullcontext():
        results = inference_on_dataset(model, images, _evaluator(dataset, scratch))
    return from_main(lambda: dict(_flat(results or {})))


def _evaluator(dataset: str, scratch: str) -> DatasetEvaluator:
    kind = getattr(MetadataCatalog.get(dataset), "evaluator_type", None)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset)
    if kind == "coco":
        return COCOEvaluator(dataset, output_dir=scratch)
    raise UserError(f"{dataset} is evaluated as {kind!r}; only COCO's and VOC's way are known here")


def _flat(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Without the APs of single classes: a row has what tables are made of."""
    return [
        (f"{task}/{name}", float(value))
        for task, metrics in results.items()
        for name, value in metrics.items()
        if "-" not in name and not (isinstance(value, float) and math.isinf(value))
    ]
