"""How a batch is passed to a network, and contexts that set evaluation mode and freeze parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ssql_det.core.errors import UserError

Forward = Callable[[nn.Module, Any], Any]
"""Runs a network on a batch: ``forward(model, batch)``. What it returns is ignored."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside; afterwards each module has its former mode.

    >>> with evaluating(model.train()):
    ...     assert not model.training
    >>> model.training
    True
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


@contextmanager
def freezing(model: nn.Module) -> Iterator[None]:
    """No gradients for the network's own parameters inside."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was_required in required.items():
            parameter.requires_grad_(was_required)


@contextmanager
def preserving_buffers(model: nn.Module) -> Iterator[None]:
    """Afterwards the network's buffers, such as running statistics, have their former values.

    Call ``backward`` inside: restored values would count as changes of tensors that a graph has saved.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def get_device(model: nn.Module) -> torch.device:
    """The device of a network's parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def forward_images(model: nn.Module, batch: Any) -> None:
    """Run the network on a batch of images, or on the first entry of a tuple, on the device and in the dtype of the
    network's weights."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise UserError(
            f"a calibration batch holds a {type(images).__name__}, not images; pass forward= to run the model on it"
        )
    parameter = next(model.parameters(), images)
    model(images.to(parameter.device, parameter.dtype if images.is_floating_point() else None))
