"""MoCo v2 (He et al., CVPR 2020; Chen et al., *Improved Baselines with Momentum Contrastive Learning*, 2020).

The first view is the query; the second view, encoded by a momentum encoder, is the query's key. The loss classifies the
key against negatives, a queue of the keys of earlier batches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ssql_det.backbones import Backbone
from ssql_det.core.distributed import concat_all_gather, rank, world_size
from ssql_det.core.errors import UserError
from ssql_det.ssl.losses import info_nce, l2_normalize
from ssql_det.ssl.method import METHODS, Encoder, Method, Views, mlp, require_positive
from ssql_det.ssl.momentum import MomentumEncoder, Queue

_logger = logging.getLogger(__name__)


class MoCoTargets(NamedTuple):
    """The keys of a batch [N, D], and the queue [K, D] of keys of earlier batches."""

    keys: Tensor
    queue: Tensor


@METHODS.register("moco")
class MoCo(Method):
    """InfoNCE of the queries, their keys and the queue before this batch is added. Only the first view passes through
    the encoder. The defaults are the published hyperparameters for ImageNet.

    ``dim`` and ``hidden`` are the projector's output and hidden dimensions, ``queue`` is the number of keys in the
    queue. ``momentum`` is the share of the old weights in an update of the moving average.

    >>> from ssql_det.backbones import build_backbone
    >>> method = MoCo(build_backbone("narrow_resnet"), dim=16, hidden=32, queue=8)
    >>> method([images, images.flip(3)]).shape, method.queue.keys.shape
    (torch.Size([]), torch.Size([8, 16]))
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
        self.encoder = Encoder(backbone.module, mlp([backbone.feature_dim, hidden, dim], norm=False))
        self.momentum = MomentumEncoder(self.encoder, momentum)
        self.queue = Queue(queue, dim)
        self.temperature = temperature
        self._has_warned = False

    @property
    def shared_by_ranks(self) -> str:
        return "images are shuffled over the ranks, and their keys are in one queue"

    def require_batch(self, size: int) -> None:
        if size > len(self.queue.keys):
            raise UserError(f"a queue of {len(self.queue.keys)} keys is smaller than a batch of {size}; increase QUEUE")

    def encode(self, views: Views) -> list[Tensor]:
        return [l2_normalize(self.encoder(views[0]))]

    def targets(self, views: Views, encoded: Sequence[Tensor]) -> MoCoTargets:
        self.momentum.update(self.encoder)
        keys = l2_normalize(self._encode_shuffled(views[1]))
        targets = MoCoTargets(keys, self.queue.keys.clone())
        self.queue.push(concat_all_gather(keys))
        return targets

    def loss(self, encoded: Sequence[Tensor], targets: MoCoTargets) -> Tensor:
        return info_nce(encoded[0], targets.keys, targets.queue, self.temperature)

    @torch.no_grad()
    def _encode_shuffled(self, images: Tensor) -> Tensor:
        """MoCo's "shuffling BN": shuffle images over the processes, so that BatchNorm statistics do not reveal the
        positives. One process cannot, and says so once."""
        if world_size() == 1:
            if not self._has_warned:
                _logger.warning("MoCo shuffles images over processes; with one, BatchNorm can reveal the positives")
            self._has_warned = True
            features: Tensor = self.momentum(images)
            return features
        all_images = concat_all_gather(images)
        order = torch.randperm(len(all_images)).to(images.device)
        dist.broadcast(order, 0)
        local_rows = slice(rank() * len(images), (rank() + 1) * len(images))
        features = concat_all_gather(self.momentum(all_images[order[local_rows]]))
        return features[order.argsort()[local_rows]]
