"""What a self-supervised method is to everything around it: it encodes views, has targets for them, and a loss.

SSQL needs these three apart: it encodes twice, float and quantized, and both are held against the same targets.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from ssql_det.core.errors import UserError
from ssql_det.core.registry import Registry

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
    steps, as a moving average. It is built from a backbone and, by keyword alone, its hyperparameters, whose defaults
    stand in its constructor and nowhere else: a registered method has a config node of them.

    >>> method = SimSiam(build_backbone("resnet18"), hidden=2048)
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

    def require_batch(self, size: int) -> None:
        """Refuse a batch, of all processes together, that cannot serve."""

    def forward(self, views: Views, step: int = 0) -> Tensor:
        """The loss of a step; its number is for what wraps a method."""
        encoded = self.encode(views)
        return self.loss(encoded, self.targets(views, encoded))


METHODS: Registry[type[Method]] = Registry("method")


def hyperparameters(kind: type) -> dict[str, Any]:
    """What a class is told by keyword alone, with its defaults.

    >>> hyperparameters(SimSiam)
    {'dim': 2048, 'hidden': 512}
    """
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def require_positive(**numbers: float) -> None:
    """Refuse hyperparameters that have to be more than 0, by their names.

    >>> require_positive(dim=256, temperature=0.0)
    UserError: temperature must be more than 0, got 0.0
    """
    for name, number in numbers.items():
        if not number > 0:
            raise UserError(f"{name} must be more than 0, got {number}")


def mlp(widths: Sequence[int], norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers, a BatchNorm and a ReLU after each but the last; ``last_norm`` adds a BatchNorm without weights.

    A layer that a norm follows has no bias: the norm would take it away again. ``norm=False`` leaves all norms out.

    >>> mlp([512, 2048, 2048, 2048], last_norm=True)  # SimSiam's projector
    >>> mlp([2048, 512, 2048])                        # and its predictor
    >>> mlp([512, 2048, 128], norm=False)             # MoCo v2's projector
    """
    layers: list[nn.Module] = []
    *hidden, last = pairwise(widths)
    for width, following in hidden:
        layers.append(nn.Linear(width, following, bias=not norm))
        layers += [nn.BatchNorm1d(following)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(*last, bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(last[1], affine=False))
    return nn.Sequential(*layers)


def mlp_from_state_dict(state: Mapping[str, Tensor]) -> nn.Sequential:
    """The one whose ``state_dict`` this is; an error where :func:`mlp` makes none that it fits.

    >>> mlp_from_state_dict(mlp([512, 128, 512]).state_dict())[3]
    Linear(in_features=128, out_features=512, bias=True)
    """
    linears = [name for name, tensor in state.items() if tensor.ndim == 2]
    if not linears:
        raise ValueError("there is no linear layer in it")
    norms = [name for name in state if name.endswith("running_mean")]
    has_last = bool(norms) and _place(norms[-1]) > _place(linears[-1])
    widths = [state[linears[0]].shape[1], *(state[name].shape[0] for name in linears)]
    head = mlp(widths, norm=len(norms) > has_last, last_norm=has_last)
    head.load_state_dict(dict(state))
    return head


def _place(name: str) -> int:
    return int(name.split(".")[0])
