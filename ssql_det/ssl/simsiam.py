"""SimSiam (Chen and He, *Exploring Simple Siamese Representation Learning*, CVPR 2021).

A predictor maps the features of one view to the detached features of the other view.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ssql_det.backbones import Backbone
from ssql_det.ssl.losses import negative_cosine
from ssql_det.ssl.method import METHODS, Encoder, Method, Views, mlp, require_positive


@METHODS.register("simsiam")
class SimSiam(Method):
    """The mean of ``D(h(z1), sg z2)`` and ``D(h(z2), sg z1)``: ``D`` is the negative cosine, ``h`` the predictor,
    ``sg`` stop-gradient. ``dim`` is the projector's output dimension, ``hidden`` the predictor's hidden dimension.
    ``fix_predictor_lr``: the predictor keeps the first learning rate, as in SimSiam's own recipe; the published SSQL
    code lowers it with the others.

    >>> from ssql_det.backbones import build_backbone
    >>> method = SimSiam(build_backbone("narrow_resnet"), dim=32, hidden=16)
    >>> method([images, images.flip(3)]).shape
    torch.Size([])
    """

    title = "SimSiam"
    may_quantize_targets = True

    def __init__(
        self, backbone: Backbone, *, dim: int = 2048, hidden: int = 512, fix_predictor_lr: bool = False
    ) -> None:
        super().__init__()
        require_positive(dim=dim, hidden=hidden)
        projector_dim = max(backbone.feature_dim, dim)
        self.encoder = Encoder(
            backbone.module, mlp([backbone.feature_dim, projector_dim, projector_dim, dim], last_norm=True)
        )
        self.predictor = mlp([dim, hidden, dim])
        self.fix_predictor_lr = fix_predictor_lr

    @property
    def modules_at_fixed_lr(self) -> tuple[nn.Module, ...]:
        return (self.predictor,) if self.fix_predictor_lr else ()

    def encode(self, views: Views) -> list[Tensor]:
        return [self.encoder(view) for view in views]

    def targets(self, views: Views, encoded: Sequence[Tensor]) -> list[Tensor]:
        return [features.detach() for features in encoded]

    def loss(self, encoded: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        first, second = (self.predictor(features) for features in encoded)
        return (negative_cosine(first, targets[1]) + negative_cosine(second, targets[0])) / 2
