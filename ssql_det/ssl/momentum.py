"""What follows a network instead of being trained: a slowly moving copy of it, and a queue of what that copy has seen.

Both are state of a training: buffers and parameters without gradient, so that checkpoints and resumed runs have them.
As the statistics of norms they move in training mode alone.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.core.errors import UserError


class Momentum(nn.Module):
    """A copy whose weights are an exponential moving average of the network's: ``rate * own + (1 - rate) * theirs``.

    Its norms keep statistics of their own, of what passes through it.

    >>> target = Momentum(encoder, rate=0.99)
    >>> target.follow(encoder)
    >>> target(images)  # without gradient
    """

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise UserError(f"momentum must be 0 to 1, got {rate}")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.rate = rate

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        if not self.training:
            return
        for own, theirs in zip(self.network.parameters(), network.parameters(), strict=True):
            own.mul_(self.rate).add_(theirs, alpha=1 - self.rate)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


class Queue(nn.Module):
    """The latest ``size`` keys [size, D] of unit length, the oldest replaced first; it begins with random ones.

    >>> queue = Queue(size=4096, dim=256)
    >>> negatives = queue.keys.clone()
    >>> queue.push(keys)
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Put keys [N, D] in; of more than ``size``, the last ones stay."""
        if not self.training:
            return
        size = len(self.keys)
        latest = torch.arange(len(keys), device=self.place.device)[-size:]
        self.keys[(self.place + latest) % size] = keys[latest].to(self.keys.dtype)
        self.place.copy_((self.place + len(keys)) % size)
