"""Losses of self-supervised methods: pure functions of features [N, D], a mean over the batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """``-cos``, from -1 (the same direction) to 1. The target takes part as it is: detach it before.

    >>> negative_cosine(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(-1.)
    """
    return -F.cosine_similarity(predicted, target, dim=1).mean()
