"""Evaluate a detector on a data set with the engine (Detectron2 or its stand-in), optionally with faster inference."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssql_det.core.distributed import broadcast_from_main
from ssql_det.d2 import FrozenBatchNorm2d, inference_on_dataset
from ssql_det.detect.evaluation_data import CachedLoader
from ssql_det.detect.evaluators import build_evaluator
from ssql_det.quant.hooks import overriding_attributes

_CLASS_AP = "/AP-"  # between a task and a class
_FOLDABLE_NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


def evaluate(model: nn.Module, loader: CachedLoader, dataset: str, is_fast: bool = True) -> dict[str, float]:
    """Metrics of COCO's or VOC's evaluator: ``{"bbox/AP": 41.2, "bbox/AP50": 62.0, "bbox/AP-person": 53.1, ...}``; NaN
    without objects.

    ``is_fast`` evaluates with :func:`fast_inference`. Under a process group each rank evaluates its share of the
    images; all ranks return the metrics over all images.
    """
    inference_context = fast_inference(model) if is_fast else nullcontext()
    with tempfile.TemporaryDirectory() as folder, inference_context:
        results = inference_on_dataset(model, loader, build_evaluator(dataset, folder))
    return broadcast_from_main(lambda: _flatten_metrics(results or {}))


def _flatten_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Metrics by ``task/name``."""
    return {f"{task}/{name}": float(value) for task, metrics in results.items() for name, value in metrics.items()}


def split_class_aps(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of all classes together, and the AP of each class, which COCO's evaluator gives.

    >>> split_class_aps({"bbox/AP": 41.0, "bbox/AP-traffic-light": 22.0})
    ({'bbox/AP': 41.0}, {'bbox/traffic-light': 22.0})
    """
    overall = {name: value for name, value in metrics.items() if _CLASS_AP not in name}
    by_class = {name.replace(_CLASS_AP, "/", 1): metrics[name] for name in metrics.keys() - overall.keys()}
    return overall, {name: by_class[name] for name in sorted(by_class)}


@contextmanager
def fast_inference(model: nn.Module) -> Iterator[None]:
    """Fold norms into their convs, and on the CPU make weights channels-last; outputs differ only by rounding.

    Norms are folded when the context is entered, so enter it last, after contexts that change weights or norms.

    >>> expected = model(images)
    >>> with fast_inference(model), torch.no_grad():
    ...     torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
    """
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                stack.enter_context(overriding_attributes(layer, **_make_fast_attributes(layer)))
        yield


def fold_norm(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The weight and the bias of a conv of the engine with its norm folded into them, or ``None`` if it has none."""
    norm: Any = getattr(layer, "norm", None)
    if not isinstance(layer, nn.Conv2d) or not isinstance(norm, _FOLDABLE_NORMS):
        return None
    norm_parameters: tuple[Any, ...] = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *norm_parameters)
    return weight.detach(), bias.detach()


@torch.no_grad()
def _make_fast_attributes(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """The weight in its fast memory format; for a conv whose norm can be folded also the bias, and no norm."""
    folded = fold_norm(layer)
    if folded is None:
        return {"weight": _to_fast_format(layer.weight)}
    weight, bias = folded
    return {"weight": _to_fast_format(weight), "bias": bias, "norm": None}


def _to_fast_format(weight: Tensor) -> Tensor:
    """Channels-last on the CPU, where it makes convs faster; on GPUs the speed has not been measured."""
    memory_format = torch.channels_last if weight.device.type == "cpu" else torch.contiguous_format
    return weight.detach().contiguous(memory_format=memory_format)
