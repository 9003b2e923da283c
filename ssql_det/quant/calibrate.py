"""Calibration: images in, ranges out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.quant.context import observing
from ssql_det.quant.observers import MinMax, ObserverFactory
from ssql_det.quant.points import QuantPoint, quant_points
from ssql_det.quant.ranges import Ranges

Forward = Callable[[nn.Module, Any], Any]


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    points: Sequence[QuantPoint] | None = None,
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    observer: ObserverFactory = MinMax,
) -> Ranges:
    """Observe the activations of ``model`` in evaluation mode, without gradients, over the loader's batches.

    Under a process group each rank brings its share of the images, and all get the ranges of all.
    ``forward(model, batch)`` says how a batch is fed; by default the batch is a tensor of images, or a
    tuple that begins with one. The model's training flags are put back.

    >>> ranges = calibrate(model, loader, batches=8)
    """
    if batches is not None and batches < 1:
        raise UserError(f"calibration needs at least 1 batch, got batches={batches}")
    feed = forward or feed_images
    points = quant_points(model) if points is None else points
    observed = 0
    with observing(model, points, observer) as ranges, evaluating(model), torch.no_grad():
        for batch in track(itertools.islice(loader, batches), "calibrating", _length(loader, batches)):
            feed(model, batch)
            ranges.require_finite()
            observed += 1
    if not observed:
        raise UserError("the calibration loader is empty; give it images, and check the folder and the batch size")
    ranges.all_reduce()
    return ranges


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode; afterwards each module is in its own again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def feed_images(model: nn.Module, batch: Any) -> None:
    """A tensor of images, or a tuple that begins with one, in the network's own type and on its device."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise UserError(f"a calibration batch holds a {type(images).__name__}, not images; pass forward= to feed it")
    parameter = next(model.parameters(), images)
    model(images.to(parameter.device, parameter.dtype if images.is_floating_point() else None))


def _length(loader: Iterable[Any], batches: int | None) -> int | None:
    length = len(loader) if isinstance(loader, Sized) else None
    return batches if length is None else length if batches is None else min(length, batches)
