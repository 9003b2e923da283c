"""Losses of self-supervised methods: pure functions of features [N, D], averaged over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def l2_normalize(features: Tensor) -> Tensor:
    """Divide each row by its L2 norm, in float32 or higher precision.

    >>> l2_normalize(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    return F.normalize(_at_least_float32(features), dim=1)


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Negative cosine similarity, from -1 (same direction) to 1. The caller detaches the target.

    >>> negative_cosine(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(-1.)
    """
    predicted, target = _at_least_float32(predicted), _at_least_float32(target)
    return -F.cosine_similarity(predicted, target, dim=1).mean()


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cross entropy of picking a query's key [N, D] among the negatives [K, D]; all have unit length.

    van den Oord et al., *Representation Learning with Contrastive Predictive Coding*, 2018; as in MoCo.

    >>> info_nce(torch.eye(2), torch.eye(2), -torch.eye(2), temperature=0.2)  # -log(e^5 / (e^5 + e^-5 + e^0))
    tensor(0.0068)
    """
    positives = (_at_least_float32(queries) * _at_least_float32(keys)).sum(1, keepdim=True)
    logits = torch.cat([positives, _similarities(queries, negatives)], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device))


def nt_xent(
    anchors: Tensor, candidates: Tensor, self_index: Tensor, positive_index: Tensor, temperature: float
) -> Tensor:
    """Cross entropy of picking the other view of an anchor's image among all candidates; all have unit length.

    ``self_index`` and ``positive_index`` [N] are indices into ``candidates`` [M, D]: of the anchor itself, which is
    excluded, and of the other view of its image. Chen et al., *A Simple Framework for Contrastive Learning* (SimCLR),
    ICML 2020.

    >>> features, index = torch.eye(2).repeat(2, 1), torch.arange(4)  # two images, two views
    >>> nt_xent(features, features, index, (index + 2) % 4, temperature=0.5)  # -log(e^2 / (e^2 + 2 e^0))
    tensor(0.2395)
    """
    logits = _similarities(anchors, candidates) / temperature
    logits = logits.scatter(1, self_index.unsqueeze(1), -torch.inf)
    return F.cross_entropy(logits, positive_index)


def _similarities(features: Tensor, others: Tensor) -> Tensor:
    """Inner products of all pairs, [N, M]. Autocast would round them to bfloat16."""
    with torch.autocast(features.device.type, enabled=False):
        return _at_least_float32(features) @ _at_least_float32(others).T


def _at_least_float32(features: Tensor) -> Tensor:
    """Convert half precision to float32, because it is too coarse for a mean over the batch."""
    return features.to(torch.promote_types(features.dtype, torch.float32))
