"""Random sampling of positives and negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers import nonzero_tuple

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Indices of positives (neither ``bg_label`` nor -1) and of negatives (``bg_label``).

    At most ``positive_fraction`` of the sample are positives; the rest are negatives, if there are enough. Two
    permutations are drawn, of the positives first, so that a seed gives the same sample as in Detectron2.
    """
    positive = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    negative = nonzero_tuple(labels == bg_label)[0]
    positives = min(positive.numel(), int(num_samples * positive_fraction))
    negatives = min(negative.numel(), num_samples - positives)
    return _draw(positive, positives), _draw(negative, negatives)


def _draw(indices: Tensor, count: int) -> Tensor:
    return indices[torch.randperm(indices.numel(), device=indices.device)[:count]]
