"""Losses of self-supervised methods: pure functions of features [N, D], a mean over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """``-cos``, from -1 (the same direction) to 1. The target takes part as it is: detach it before.

    >>> negative_cosine(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(-1.)
    """
    kind = torch.promote_types(predicted.dtype, torch.float32)  # a mean in half precision has steps of 1/256
    return -F.cosine_similarity(predicted.to(kind), target.to(kind), dim=1).mean()
