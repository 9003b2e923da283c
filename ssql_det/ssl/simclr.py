"""SimCLR (Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations*, ICML 2020).

The loss classifies which of all views in the batch is the other view of the same image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor

from ssql_det.backbones import Backbone
from ssql_det.core.distributed import rank, world_size
from ssql_det.ssl.losses import l2_normalize, nt_xent
from ssql_det.ssl.method import METHODS, Encoder, Method, Views, mlp, require_positive


@METHODS.register("simclr")
class SimCLR(Method):
    """NT-Xent over the views of all processes; without ``gather`` each process takes its own images for all there are,
    as the published SSQL code. Under SSQL the quantized features are compared with quantized features, as published;
    with ``cross``, with the detached float features. ``dim`` and ``hidden`` are the projector's output and hidden
    dimensions.

    >>> from ssql_det.backbones import build_backbone
    >>> method = SimCLR(build_backbone("narrow_resnet"), dim=16, hidden=32)
    >>> method([images, images.flip(3)]).shape
    torch.Size([])
    """

    title = "SimCLR"

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int = 128,
        hidden: int = 2048,
        temperature: float = 0.5,
        cross: bool = False,
        gather: bool = True,
    ) -> None:
        super().__init__()
        require_positive(dim=dim, hidden=hidden, temperature=temperature)
        self.encoder = Encoder(backbone.module, mlp([backbone.feature_dim, hidden, dim], norm=False))
        self.temperature, self.cross, self.gather = temperature, cross, gather

    @property
    def shared_by_ranks(self) -> str:
        return "negatives are of all ranks (SIMCLR.GATHER False: of the own)" if self.gather else ""

    def encode(self, views: Views) -> list[Tensor]:
        return [l2_normalize(self.encoder(view)) for view in views]

    def targets(self, views: Views, encoded: Sequence[Tensor]) -> Sequence[Tensor] | None:
        return encoded if self.cross else None

    def loss(self, encoded: Sequence[Tensor], targets: Sequence[Tensor] | None) -> Tensor:
        is_own = targets is None or targets is encoded  # the latter with ``cross``, in the float pass
        views = encoded if is_own else [features.detach() for features in targets or ()]
        candidates = _gather_views(views) if self.gather else torch.cat(list(views))
        num_images, num_all_images = len(encoded[0]), len(candidates) // 2
        offset = rank() * num_images if self.gather else 0
        first_views = torch.arange(num_images, device=candidates.device) + offset
        second_views = first_views + num_all_images
        self_index = torch.cat([first_views, second_views])
        positive_index = torch.cat([second_views, first_views])
        return nt_xent(torch.cat(list(encoded)), candidates, self_index, positive_index, self.temperature)


def _gather_views(encoded: Sequence[Tensor]) -> Tensor:
    """The first views of all processes, then the second views: [2N, D]."""
    if world_size() == 1:
        return torch.cat(list(encoded))
    return torch.cat([torch.cat(differentiable_all_gather(features)) for features in encoded])
