"""How a network is fed a batch of what a loader gives, and evaluation mode as a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ssql_det.core.errors import UserError

Forward = Callable[[nn.Module, Any], Any]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode; afterwards each module is in its own again."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def forward_images(model: nn.Module, batch: Any) -> None:
    """A tensor of images, or a tuple that begins with one, in the network's own type and on its device."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise UserError(f"a calibration batch holds a {type(images).__name__}, not images; pass forward= to feed it")
    parameter = next(model.parameters(), images)
    model(images.to(parameter.device, parameter.dtype if images.is_floating_point() else None))
