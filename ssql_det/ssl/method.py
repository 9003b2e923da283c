"""What a self-supervised method is to everything around it: it encodes views, has targets for them, and a loss.

SSQL needs these three apart: it encodes twice, float and quantized, and both are held against the same targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

Views = Sequence[Tensor]  # of one batch of images: two tensors [N, 3, H, W]


class Encoder(nn.Module):
    """A backbone and its projector: what is trained, observed and quantized.

    >>> Encoder(build_backbone("resnet18").module, mlp([512, 2048, 2048]))(images).shape
    torch.Size([16, 2048])
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.backbone(images))
        return projected


class Method(nn.Module, ABC):
    """One step of a method is ``method(views)``, a loss. ``encoder`` is its online network.

    ``title`` is its name for people. ``targets`` is called once a step, so that it may change what only moves with the
    steps, as a moving average.

    >>> method = SimSiam(build_backbone("resnet18"))
    >>> method([view_1, view_2]).backward()
    """

    title: ClassVar[str]
    may_quantize_targets: ClassVar[bool] = False  # they are any features of its own network: SSQL chooses which
    encoder: Encoder

    @abstractmethod
    def encode(self, views: Views) -> list[Tensor]:
        """The online network's features [N, D] of those views that pass through it."""

    @abstractmethod
    def targets(self, views: Views, encoded: Sequence[Tensor]) -> Any:
        """What features are held against, without gradient; ``encoded`` are the float features of these views."""

    @abstractmethod
    def loss(self, encoded: Sequence[Tensor], targets: Any) -> Tensor:
        """How far features, float or quantized, are from their targets."""

    def forward(self, views: Views, step: int = 0) -> Tensor:
        """The loss of a step; its number is for what wraps a method."""
        encoded = self.encode(views)
        return self.loss(encoded, self.targets(views, encoded))
