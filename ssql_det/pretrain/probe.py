"""What frozen features know of the classes: by their neighbours, and by a linear layer trained on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07
_EPOCHS, _STEPS, _BATCH, _RATE, _MOMENTUM = 100, (60, 80), 512, 30.0, 0.9  # the published probe's


def knn(seen: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Top-1 accuracy, in percent, of a vote of the nearest by cosine, weighted (Wu et al., CVPR 2018).

    >>> knn(train_features, train_labels, test_features, test_labels)
    93.2
    """
    seen, asked = F.normalize(seen, dim=1), F.normalize(asked, dim=1)
    classes = int(labels.max()) + 1
    right = 0
    for part, expected in zip(asked.split(1024), truth.split(1024), strict=True):
        likeness, nearest = (part @ seen.T).topk(min(neighbours, len(seen)), dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[nearest], (likeness / TEMPERATURE).exp())
        right += int((votes.argmax(1) == expected).sum())
    return 100 * right / len(truth)


def linear(seen: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, seed: int = 0) -> float:
    """Top-1 accuracy, in percent, of a linear layer trained on the features: the published schedule, no augmentation.

    Features are scaled to a mean norm of 1, so that one learning rate serves networks of any scale.

    >>> linear(train_features, train_labels, test_features, test_labels)
    95.5
    """
    scale = seen.norm(dim=1).mean().clamp(min=1e-12)
    seen, asked = seen / scale, asked / scale
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(int(labels.max()) + 1, seen.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=_RATE * min(_BATCH, len(seen)) / 512, momentum=_MOMENTUM)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, _STEPS, 0.1)
    for _ in range(_EPOCHS):
        for part in torch.randperm(len(seen), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(seen[part], weight, bias), labels[part]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        predicted = F.linear(asked, weight, bias).argmax(1)
    return 100 * int((predicted == truth).sum()) / len(truth)
