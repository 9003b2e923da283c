"""BatchNorm statistics for a bit-width: estimated from some images as the network is now, and put in for a while.

Quantization shifts what a norm sees; its statistics can follow at no cost but some forward passes. Frozen norms have
none to follow. Statistics are overridden: the network's own stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.quant.forward import Forward, evaluating, forward_images
from ssql_det.quant.hooks import overriding_attributes

Statistics = Mapping[str, Tensor]
"""The mean and the variance of each norm, by the names of its buffers: ``bn1.running_mean``."""

_NAMES = ("running_mean", "running_var")


def estimate_norm_statistics(model: nn.Module, batches: Iterable[Any], forward: Forward = forward_images) -> Statistics:
    """Mean and variance of every BatchNorm on these batches, averaged over them.

    Batches of some images: the variance within one is not that of the data.
    """
    norms = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    if not norms:
        raise UserError("this network's norms are frozen: norms=re-estimated has nothing to estimate")
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for path, norm in norms.items():
            empty = {"running_mean": torch.zeros_like(_own(norm, "running_mean"))}
            empty["running_var"] = torch.ones_like(_own(norm, "running_var"))
            found |= {f"{path}.{name}": tensor for name, tensor in empty.items()}
            count = torch.zeros_like(_own(norm, "num_batches_tracked"))
            stack.callback(norm._buffers.update, dict(norm._buffers))  # Detectron2's synchronized norm assigns to them
            # No momentum is torch's way to say: the average over all batches.
            stack.enter_context(overriding_attributes(norm, **empty, num_batches_tracked=count, momentum=None))
            norm.train()
        with torch.no_grad():
            fed = False
            for batch in track(batches, "re-estimating norms"):
                forward(model, batch)
                fed = True
    if not fed:
        raise UserError("norms=re-estimated has no images to estimate this width's statistics from; calibrate it, too")
    return found


@contextmanager
def overriding_statistics(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Inside, norms have these."""
    with ExitStack() as stack:
        for path in dict.fromkeys(name.rpartition(".")[0] for name in statistics):
            own = {name: statistics[f"{path}.{name}"] for name in _NAMES}
            stack.enter_context(overriding_attributes(model.get_submodule(path), **own))
        yield


def _own(norm: nn.Module, name: str) -> Tensor:
    buffer = norm._buffers[name]
    if buffer is None:
        raise UserError("a norm without running statistics has none that norms=re-estimated could estimate")
    return buffer
