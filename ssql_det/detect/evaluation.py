"""One detector measured at one bit-width: calibrate once, quantize, evaluate, and a row of what came out.

An evaluation is the engine's loop with the data set's own evaluator, its metrics under plain names.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssql_det.core.distributed import broadcast_from_main
from ssql_det.core.errors import UserError
from ssql_det.d2 import (
    COCOEvaluator,
    DatasetEvaluator,
    FrozenBatchNorm2d,
    MetadataCatalog,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from ssql_det.detect.engine_errors import translate_errors
from ssql_det.detect.evaluation_data import (
    CachedLoader,
)
from ssql_det.quant.hooks import overriding_attributes

_logger = logging.getLogger(__name__)
_FOLDABLE = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


def evaluate(model: nn.Module, images: CachedLoader, dataset: str, is_fast: bool = True) -> dict[str, float]:
    """Metrics of the data set's own evaluator: ``{"bbox/AP": 41.2, "bbox/AP50": 62.0, ...}``.

    Under a process group each rank brings its share of the images, and all get the metrics of all.
    """
    faster = fast_inference(model) if is_fast else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, translate_errors(f"{dataset} cannot be evaluated on"), faster:
        results = inference_on_dataset(model, images, _evaluator(dataset, scratch))
    return broadcast_from_main(lambda: dict(_flat(results or {})))


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


@contextmanager
def fast_inference(model: nn.Module) -> Iterator[None]:
    """Inside, the evaluation mode of ``model`` is faster, and equal but for the rounding of floats.

    The innermost of blocks: what weights and statistics are now is taken.

    >>> with quantization.at(Bits(4, 4)), fast_inference(model), torch.no_grad():
    ...     detections = model(images)
    """
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                stack.enter_context(overriding_attributes(layer, **_faster(layer)))
        yield


@torch.no_grad()
def _faster(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """Weight, and where a norm is folded also bias and norm, to stand in for a layer's own."""
    norm: Any = getattr(layer, "norm", None)
    if isinstance(layer, nn.ConvTranspose2d) or not isinstance(norm, _FOLDABLE):
        return {"weight": _laid_out(layer.weight)}
    statistics: tuple[Any, ...] = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
    return {"weight": _laid_out(weight), "bias": bias.detach(), "norm": None}


def _laid_out(weight: Tensor) -> Tensor:
    """As convs on the CPU are fastest; their inputs and outputs follow. On a GPU nobody has measured it."""
    format = torch.channels_last if weight.device.type == "cpu" else torch.contiguous_format
    return weight.detach().contiguous(memory_format=format)
