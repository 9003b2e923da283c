"""Losses of self-supervised methods: pure functions of features [N, D], a mean over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_length(features: Tensor) -> Tensor:
    """Features over their length, in float32 at least.

    >>> unit_length(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    return F.normalize(_precise(features), dim=1)


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """``-cos``, from -1 (the same direction) to 1. The target takes part as it is: detach it before.

    >>> negative_cosine(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(-1.)
    """
    predicted, target = _precise(predicted), _precise(target)
    return -F.cosine_similarity(predicted, target, dim=1).mean()


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """How hard a query [N, D] tells its key [N, D] from the negatives [K, D]; all of unit length.

    van den Oord et al., *Representation Learning with Contrastive Predictive Coding*, 2018; as in MoCo.

    >>> info_nce(torch.eye(2), torch.eye(2), -torch.eye(2), temperature=0.2)  # -log(e^5 / (e^5 + e^-5 + e^0))
    tensor(0.0068)
    """
    right = (_precise(queries) * _precise(keys)).sum(1, keepdim=True)
    likeness = torch.cat([right, _products(queries, negatives)], dim=1) / temperature
    return F.cross_entropy(likeness, torch.zeros(len(queries), dtype=torch.long, device=queries.device))


def nt_xent(anchors: Tensor, candidates: Tensor, own: Tensor, partner: Tensor, temperature: float) -> Tensor:
    """How hard an anchor [N, D] tells its partner from all other candidates [M, D]; all of unit length.

    ``own`` and ``partner`` [N] are places among the candidates: of the anchor itself, which does not count, and of the
    other view of its image. Chen et al., *A Simple Framework for Contrastive Learning* (SimCLR), ICML 2020.

    >>> features, places = torch.eye(2).repeat(2, 1), torch.arange(4)  # two images, twice
    >>> nt_xent(features, features, places, (places + 2) % 4, temperature=0.5)  # -log(e^2 / (e^2 + 2 e^0))
    tensor(0.2395)
    """
    likeness = _products(anchors, candidates) / temperature
    likeness = likeness.scatter(1, own.unsqueeze(1), -torch.inf)
    return F.cross_entropy(likeness, partner)


def _products(some: Tensor, others: Tensor) -> Tensor:
    """Of all pairs, [N, M]: autocast would round them to eight bits, whatever they are made of."""
    with torch.autocast(some.device.type, enabled=False):
        return _precise(some) @ _precise(others).T


def _precise(features: Tensor) -> Tensor:
    """A mean in half precision has steps of 1/256."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
