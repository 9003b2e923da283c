"""The momentum encoder of BYOL and MoCo, and MoCo's queue of keys.

Both consist of buffers or parameters without gradient, so checkpoints save them. They are updated only in training
mode.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.core.errors import UserError


class MomentumEncoder(nn.Module):
    """A copy of a network whose weights are an exponential moving average (EMA) of the network's weights.

    Norm statistics are not averaged: the copy computes its own from the images that it encodes.

    >>> target = MomentumEncoder(nn.Linear(1, 1), momentum=0.99)
    >>> target.update(nn.Linear(1, 1))  # weight = 0.99 * weight + 0.01 * new_weight
    >>> target(torch.ones(1, 1)).requires_grad
    False
    """

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise UserError(f"momentum must be 0 to 1, got {momentum}")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        if not self.training:
            return
        for average, parameter in zip(self.network.parameters(), network.parameters(), strict=True):
            average.mul_(self.momentum).add_(parameter, alpha=1 - self.momentum)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


class Queue(nn.Module):
    """A ring buffer of the latest ``size`` keys [size, dim] of unit length, initially random.

    >>> queue = Queue(size=3, dim=2)
    >>> queue.push(torch.eye(2))
    >>> queue.keys[:2]
    tensor([[1., 0.],
            [0., 1.]])
    """

    keys: Tensor
    place: Tensor  # index of the oldest key; the name is stored in checkpoints

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest keys by ``keys`` [N, D]; if N exceeds the size, only the last keys are stored."""
        if not self.training:
            return
        size = len(self.keys)
        latest = torch.arange(len(keys), device=self.place.device)[-size:]
        self.keys[(self.place + latest) % size] = keys[latest].to(self.keys.dtype)
        self.place.copy_((self.place + len(keys)) % size)
