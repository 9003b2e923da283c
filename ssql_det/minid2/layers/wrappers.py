"""torch's layers with Detectron2's additions: convs with norm and activation, losses without targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """``activation(norm(conv(x)))``; both ``norm`` and ``activation`` may be ``None``.

    >>> conv = Conv2d(3, 8, kernel_size=3, padding=1, bias=False, norm=nn.BatchNorm2d(8), activation=F.relu)
    >>> conv(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0 and self.training:
            assert not isinstance(self.norm, nn.SyncBatchNorm), "SyncBatchNorm takes no empty batch"
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` that does not copy a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
    """``F.cross_entropy``, but the mean over no targets is 0 and keeps the graph."""
    if target.numel() == 0 and reduction == "mean":
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """``nonzero`` with one index tensor per dimension; a scalar is treated as one element."""
    return torch.atleast_1d(x).nonzero().unbind(1)
