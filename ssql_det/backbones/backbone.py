"""What a backbone is, and the table of builders, to which a module from outside the package can add its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ssql_det.core.errors import UserError, printable
from ssql_det.core.registry import Registry

BACKBONES: Registry[Callable[[bool], tuple[nn.Module, int]]] = Registry("backbone")
"""Of ``zero_init_residual`` a builder makes a network with fresh weights, and the width of its features.

>>> @BACKBONES.register("my_net")
... def my_net(zero_init_residual: bool) -> tuple[nn.Module, int]:
...     return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8
"""


@dataclass(frozen=True)
class Backbone:
    """A network that maps images [N, 3, H, W] to features [N, width].

    >>> backbone = build_backbone("resnet18")
    >>> backbone.width, backbone.module(torch.zeros(2, 3, 64, 64)).shape
    (512, torch.Size([2, 512]))
    """

    name: str
    module: nn.Module
    width: int

    @torch.no_grad()
    def require_size(self, size: int) -> None:
        """Refuse images that the network cannot take: some are made for one size alone."""
        training = self.module.training
        try:
            features = self.module.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError) as failure:
            reason = " ".join(str(failure).split())
            raise UserError(f"{self.name} cannot take images of {size} pixels: {printable(reason, 200)}") from failure
        finally:
            self.module.train(training)
        if (shape := list(getattr(features, "shape", ()))) != [1, self.width]:
            raise UserError(f"{self.name} puts out {shape} for one image, and its builder says [1, {self.width}]")


def refuse_zero_init(name: str) -> UserError:
    return UserError(f"{name} has no residual branches that could start at zero; leave zero_init_residual off")
