"""MoCo v2 (He et al., CVPR 2020; Chen et al., *Improved Baselines with Momentum Contrastive Learning*, 2020).

The first view is a query, the second a key, encoded by a slowly moving copy of the network. The query has to tell its
key from a queue of keys of earlier batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ssql_det.backbones import Backbone
from ssql_det.core.distributed import concat_all_gather, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.ssl.losses import info_nce, unit_length
from ssql_det.ssl.method import METHODS, Encoder, Method, Views, mlp, require_positive
from ssql_det.ssl.momentum import Momentum, Queue


class Keys(NamedTuple):
    """A batch's own keys [N, D], and those of earlier ones [K, D]."""

    own: Tensor
    queue: Tensor


@METHODS.register("moco")
class MoCo(Method):
    """InfoNCE of queries, against keys and the queue as it was before them. Only the first view meets the network.
    Defaults are the authors', on ImageNet.

    >>> MoCo(build_backbone("resnet18"), dim=256, hidden=2048, queue=4096, temperature=0.2, momentum=0.999)
    """

    title = "MoCo v2"

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int = 128,
        hidden: int = 2048,
        queue: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        require_positive(dim=dim, hidden=hidden, queue=queue, temperature=temperature)
        self.encoder = Encoder(backbone.module, mlp([backbone.width, hidden, dim], norm=False))
        self.momentum = Momentum(self.encoder, momentum)
        self.queue = Queue(queue, dim)
        self.temperature = temperature

    def require_batch(self, size: int) -> None:
        if size > len(self.queue.keys):
            raise UserError(f"a queue of {len(self.queue.keys)} is less than a batch of {size} keys; make it more")

    def encode(self, views: Views) -> list[Tensor]:
        return [unit_length(self.encoder(views[0]))]

    def targets(self, views: Views, encoded: Sequence[Tensor]) -> Keys:
        self.momentum.follow(self.encoder)
        keys = unit_length(self._shuffled_pass(views[1]))
        targets = Keys(keys, self.queue.keys.clone())
        self.queue.push(concat_all_gather(keys))
        return targets

    def loss(self, encoded: Sequence[Tensor], targets: Keys) -> Tensor:
        return info_nce(encoded[0], targets.own, targets.queue, self.temperature)

    @torch.no_grad()
    def _shuffled_pass(self, images: Tensor) -> Tensor:
        """Each process encodes images of all of them: so the norms' statistics give no key away to its query."""
        if world_size() == 1:
            features: Tensor = self.momentum(images)
            return features
        everyone = concat_all_gather(images)
        order = torch.randperm(len(everyone)).to(images.device)
        dist.broadcast(order, 0)
        own = slice(rank() * len(images), (rank() + 1) * len(images))
        features = concat_all_gather(self.momentum(everyone[order[own]]))
        return features[order.argsort()[own]]
