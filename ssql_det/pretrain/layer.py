"""A linear layer on frozen features: by which recipe it is trained, and how well it does.

What the layer sees depends on where in its training it is: so features may be kept, or be made anew in each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.core.choices import choices_of
from ssql_det.core.console import track
from ssql_det.pretrain.lars import LARS

Place = tuple[int, Tensor]
"""An epoch, and the numbers [N] of the images that make up a batch of it."""

Seen = Callable[[Iterator[Place]], Iterable[Tensor]]
"""The features [N, D] of each place, one after the other."""

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "LARS": partial(LARS, vectors=True),  # the published probe's scales the bias, too
}


@dataclass(frozen=True)
class Training:
    """``falls`` are shares of the epochs after which the rate is a tenth of what it was; without them it is a cosine.

    >>> training = Training("SGD", rate=30.0, batch=512, epochs=100, falls=(0.6, 0.8))
    >>> training.rate_in(59), training.rate_in(60), training.at_batch(256).rate
    (30.0, 3.0, 15.0)
    """

    optimizer: str
    rate: float
    batch: int
    epochs: int
    falls: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.optimizer} at {self.rate:g} for a batch of {self.batch}, {self.epochs} epochs"

    def at_batch(self, batch: int) -> Training:
        """With batches of another size, and a rate in proportion."""
        return replace(self, rate=self.rate * batch / self.batch, batch=batch)

    def rate_in(self, epoch: int) -> float:
        if not self.falls:
            return self.rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        rate = self.rate
        for share in self.falls:
            rate *= 0.1 if epoch >= share * self.epochs else 1
        return rate


def begun(width: int, classes: int, seed: int = 0) -> nn.Linear:
    """A layer as torch begins one, the same for the same seed."""
    with choices_of(seed, "layer"):
        return nn.Linear(width, classes)


def train(layer: nn.Linear, seen: Seen, labels: Tensor, training: Training, seed: int = 0) -> None:
    """By cross entropy, without weight decay; the order of the images in each epoch follows from the seed.

    >>> train(layer, lambda places: (features[part] for _, part in places), labels, training)
    """
    training, device = training.at_batch(min(training.batch, len(labels))), layer.weight.device
    optimizer = _OPTIMIZERS[training.optimizer](layer.parameters(), lr=training.rate, momentum=0.9)
    places = partial(_places, len(labels), training, seed)
    steps = training.epochs * -(-len(labels) // training.batch)
    batches = zip(places(), seen(places()), strict=True)
    for (epoch, part), features in track(batches, "training a linear layer", steps):
        optimizer.param_groups[0]["lr"] = training.rate_in(epoch)
        optimizer.zero_grad()
        F.cross_entropy(layer(features.to(device)), labels[part].to(device)).backward()
        optimizer.step()


def _places(count: int, training: Training, seed: int) -> Iterator[Place]:
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(training.epochs):
        for part in torch.randperm(count, generator=generator).split(training.batch):
            yield epoch, part


@torch.no_grad()
def top1(layer: nn.Linear, asked: Tensor, truth: Tensor) -> float:
    """In percent."""
    predicted = layer(asked.to(layer.weight.device)).argmax(1).cpu()
    return 100 * int((predicted == truth).sum()) / len(truth)
