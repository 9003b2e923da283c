"""BYOL (Grill et al., *Bootstrap Your Own Latent*, NeurIPS 2020).

A predictor maps the features of one view to a momentum encoder's features of the other view.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssql_det.backbones import Backbone
from ssql_det.ssl.losses import negative_cosine
from ssql_det.ssl.method import METHODS, Encoder, Method, Views, mlp, require_positive
from ssql_det.ssl.momentum import MomentumEncoder


@METHODS.register("byol")
class BYOL(Method):
    """The mean of ``D(h(z1), z2')`` and ``D(h(z2), z1')``: ``D`` is the negative cosine, ``h`` the predictor, ``z'``
    the features of the momentum encoder, which is updated before it encodes.

    ``dim`` and ``hidden`` are the output and hidden dimensions of projector and predictor. ``momentum`` is the share of
    the old weights in an update of the moving average. ``last_norm``: the projector ends in a BatchNorm.

    >>> from ssql_det.backbones import build_backbone
    >>> method = BYOL(build_backbone("narrow_resnet"), dim=16, hidden=32)
    >>> method([images, images.flip(3)]).shape
    torch.Size([])
    """

    title = "BYOL"

    def __init__(
        self, backbone: Backbone, *, dim: int = 512, hidden: int = 2048, momentum: float = 0.99, last_norm: bool = False
    ) -> None:
        super().__init__()
        require_positive(dim=dim, hidden=hidden)
        self.encoder = Encoder(backbone.module, mlp([backbone.feature_dim, hidden, hidden, dim], last_norm=last_norm))
        self.predictor = mlp([dim, hidden, dim])
        self.momentum = MomentumEncoder(self.encoder, momentum)

    def encode(self, views: Views) -> list[Tensor]:
        return [self.encoder(view) for view in views]

    def targets(self, views: Views, encoded: Sequence[Tensor]) -> list[Tensor]:
        self.momentum.update(self.encoder)
        return [self.momentum(view) for view in views]

    def loss(self, encoded: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        first, second = (self.predictor(features) for features in encoded)
        return (negative_cosine(first, targets[1]) + negative_cosine(second, targets[0])) / 2
