"""Re-estimate the statistics of a quantized network's BatchNorms, and use them inside a context.

Quantization changes the mean and variance of a norm's input; re-estimating them takes only some forward passes.
Detectron2's ``FrozenBatchNorm2d`` is a constant scale and shift, and stays as it is. The buffers of the network are not
changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.quant.forward import Forward, evaluating, forward_images
from ssql_det.quant.hooks import overriding_attributes

NormStatistics = Mapping[str, Tensor]
"""The mean and the variance of each norm, by the names of its buffers: ``bn1.running_mean``."""

_BUFFERS = ("running_mean", "running_var")


def estimate_norm_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Forward = forward_images
) -> NormStatistics:
    """The mean and variance of every BatchNorm's input, averaged over the batches.

    The network runs as it is at the call: for a bit-width's statistics, call this where that bit-width is in effect. A
    batch needs several images: the variance within one image is smaller than that of the data. With several processes
    every rank runs all batches.
    """
    norms = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise UserError("norms=re-estimated: this network has no BatchNorm that is not frozen; use norms=trained")
    statistics: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for path, norm in norms.items():
            initial = {"running_mean": torch.zeros_like(_get_buffer(norm, "running_mean"))}
            initial["running_var"] = torch.ones_like(_get_buffer(norm, "running_var"))
            statistics |= {f"{path}.{name}": tensor for name, tensor in initial.items()}
            count = torch.zeros_like(_get_buffer(norm, "num_batches_tracked"))
            # A synchronized norm would mix the ranks' batches, and Detectron2's has no average over all batches, which
            # is what momentum=None stands for.
            plain = {"forward": partial(_BatchNorm.forward, norm), "momentum": None}
            stack.enter_context(overriding_attributes(norm, **initial, num_batches_tracked=count, **plain))
            norm.train()
        with torch.no_grad():
            has_images = False
            for batch in track(batches, "re-estimating norms"):
                forward(model, batch)
                has_images = True
    if not has_images:
        raise UserError(
            "norms=re-estimated: no images to estimate the statistics of this bit-width from; of a saved "
            "quantization use the bit-widths that it was evaluated at, or calibrate again"
        )
    return statistics


def check_norm_statistics(model: nn.Module, statistics: NormStatistics) -> None:
    """Raise a ``ValueError`` unless these are possible statistics of every norm that is estimated, and of no other."""
    norms = [(path, module) for path, module in model.named_modules() if isinstance(module, _BatchNorm)]
    buffers = {f"{path}.{name}": _get_buffer(norm, name) for path, norm in norms for name in _BUFFERS}
    if differing := buffers.keys() ^ statistics.keys():
        raise ValueError(f"{min(differing)} is missing, or no statistic of a norm")
    for name, tensor in statistics.items():
        is_negative = name.endswith("running_var") and bool((tensor < 0).any())
        if tensor.shape != buffers[name].shape or not tensor.isfinite().all() or is_negative:
            raise ValueError(f"{name} has another shape than the norm's buffer, or values that are not possible")


@contextmanager
def overriding_statistics(model: nn.Module, statistics: NormStatistics) -> Iterator[None]:
    """Use these statistics in place of those in the network's buffers; the network may have moved to another device."""
    with ExitStack() as stack:
        for path in dict.fromkeys(name.rpartition(".")[0] for name in statistics):
            norm = model.get_submodule(path)
            device = _get_buffer(norm, "running_mean").device
            buffers = {name: statistics[f"{path}.{name}"].to(device) for name in _BUFFERS}
            stack.enter_context(overriding_attributes(norm, **buffers))
        yield


def _get_buffer(norm: nn.Module, name: str) -> Tensor:
    buffer = norm._buffers[name]
    if buffer is None:
        raise UserError("norms=re-estimated: a norm has no running statistics; use norms=trained")
    return buffer
