"""The interface of a self-supervised method: it encodes views, makes targets for them, and computes a loss.

These three methods are separate because SSQL encodes twice, float and quantized, and compares both results with the
same targets.
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

Views = Sequence[Tensor]  # two tensors [N, 3, H, W]: the first and second views of a batch of images


class Encoder(nn.Module):
    """A backbone and its projector: the part of a method that SSQL quantizes. A predictor is not in it.

    >>> Encoder(model, mlp([192, 64, 32]))(images).shape
    torch.Size([4, 32])
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.backbone(images))
        return projected


class Method(nn.Module, ABC):
    """A self-supervised method; ``method(views)`` is the loss of a step, and ``encoder`` makes its features.

    A subclass takes a backbone and keyword-only hyperparameters. The hyperparameters' names and defaults become the
    config node of the method. ``title`` is the method's name in tables and checkpoints.

    >>> from ssql_det.backbones import build_backbone
    >>> from ssql_det.ssl import SimSiam
    >>> method = SimSiam(build_backbone("narrow_resnet"), dim=32, hidden=16)
    >>> method([images, images.flip(3)]).backward()
    """

    title: ClassVar[str]
    num_loss_parts: ClassVar[int] = 1  # see ``SSQL.num_loss_parts``
    may_quantize_targets: ClassVar[bool] = False  # True where targets are features of the encoder itself
    encoder: Encoder

    @abstractmethod
    def encode(self, views: Views) -> list[Tensor]:
        """The encoder's features [N, D], one tensor for each view that the method encodes."""

    @abstractmethod
    def targets(self, views: Views, encoded: Sequence[Tensor]) -> Any:
        """The targets that the loss compares features with, without gradient; ``encoded`` has the float features of the
        views.

        It is called once per step, so it may update state such as a moving average or a queue.
        """

    @abstractmethod
    def loss(self, encoded: Sequence[Tensor], targets: Any) -> Tensor:
        """The loss of encoded features, float or quantized, for the given targets."""

    @property
    def shared_by_ranks(self) -> str:
        """What the loss of a rank needs of the others, so that one process cannot take their parts one after the other;
        empty if nothing."""
        return ""

    @property
    def modules_at_fixed_lr(self) -> tuple[nn.Module, ...]:
        """Modules whose learning rate stays the first one, whatever the schedule."""
        return ()

    def require_batch(self, size: int) -> None:
        """Raise a ``UserError`` if the method does not support this batch size (total over all processes)."""

    def forward(self, views: Views, step: int = 0, part: int | None = None) -> Tensor:
        """The loss of a step; only wrappers such as SSQL use ``step`` and ``part``."""
        encoded = self.encode(views)
        return self.loss(encoded, self.targets(views, encoded))


METHODS: Registry[type[Method]] = Registry("method")


def get_hyperparameters(cls: type) -> dict[str, Any]:
    """The keyword-only arguments of a class's constructor, with their defaults.

    >>> from ssql_det.ssl import SimSiam
    >>> get_hyperparameters(SimSiam)
    {'dim': 2048, 'hidden': 512, 'fix_predictor_lr': False}
    """
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def require_positive(**hyperparameters: float) -> None:
    """Raise a ``UserError`` for a hyperparameter that is not above 0.

    >>> require_positive(dim=256, temperature=0.0)
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: temperature must be more than 0, got 0.0
    """
    for name, value in hyperparameters.items():
        if not value > 0:
            raise UserError(f"{name} must be more than 0, got {value}")


def mlp(dims: Sequence[int], norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU after each but the last; ``last_norm`` adds BatchNorm(affine=False).

    ``dims`` are those of the input and of each layer's output. A linear layer before a norm has no bias, since the
    norm would cancel it. ``norm=False``: only ``last_norm`` adds a norm.

    >>> mlp([4, 8, 2], last_norm=True)
    Sequential(
      (0): Linear(in_features=4, out_features=8, bias=False)
      (1): BatchNorm1d(8, ...)
      (2): ReLU(inplace=True)
      (3): Linear(in_features=8, out_features=2, bias=False)
      (4): BatchNorm1d(2, ...affine=False...)
    )
    """
    layers: list[nn.Module] = []
    *hidden, last = pairwise(dims)
    for in_dim, out_dim in hidden:
        layers.append(nn.Linear(in_dim, out_dim, bias=not norm))
        layers += [nn.BatchNorm1d(out_dim)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(*last, bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(last[1], affine=False))
    return nn.Sequential(*layers)


def mlp_from_state_dict(state: Mapping[str, Tensor]) -> nn.Sequential:
    """Rebuild an :func:`mlp` from its ``state_dict``; raises an error if no :func:`mlp` has such a state.

    >>> mlp_from_state_dict(mlp([512, 128, 512]).state_dict())[3]
    Linear(in_features=128, out_features=512, bias=True)
    """
    linears = [name for name, tensor in state.items() if tensor.ndim == 2]
    if not linears:
        raise ValueError("it has no linear layer")
    norms = [name for name in state if name.endswith("running_mean")]
    has_last_norm = bool(norms) and _layer_index(norms[-1]) > _layer_index(linears[-1])
    dims = [state[linears[0]].shape[1], *(state[name].shape[0] for name in linears)]
    head = mlp(dims, norm=len(norms) > has_last_norm, last_norm=has_last_norm)
    head.load_state_dict(dict(state))
    return head


def _layer_index(name: str) -> int:
    return int(name.split(".")[0])
