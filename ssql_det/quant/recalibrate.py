"""BatchNorm statistics for a bit-width: estimated anew from some images, weights untouched, put back after.

Quantization shifts what a norm sees; its statistics can follow at no cost but some forward passes. Frozen norms have
none to follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.quant.calibrate import Forward, evaluating, feed_images


@contextmanager
def recalibrated(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> Iterator[None]:
    """Inside, every BatchNorm has the mean and variance of these batches, averaged over them.

    ``forward(model, batch)`` says how a batch is fed, as in ``calibrate``. Batches of some images: the variance within
    one is not that of the data.

    >>> with quantized(model, points, ranges, Bits(4, 4)), recalibrated(model, batches):
    ...     features = model(images)
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError("this network's norms are frozen: there is nothing that --recalibrate-bn could estimate anew")
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    feed = forward or feed_images
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's way to say: the average over all batches
                norm.train()
            with torch.no_grad():
                for batch in track(batches, "recalibrating norms"):
                    feed(model, batch)
            model.eval()
            yield
    finally:
        for norm, buffers, momentum in zip(norms, before, momenta, strict=True):
            norm.momentum = momentum
            for name, value in norm.named_buffers():
                value.copy_(buffers[name])
