"""What frozen features know of the classes: by their neighbours, and by a linear layer trained on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssql_det.pretrain.layer import Seen, Training, begun, top1, train
from ssql_det.pretrain.protocol import FAST

NEIGHBOURS, TEMPERATURE = 20, 0.07


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


def linear(seen: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, training: Training = FAST) -> float:
    """Top-1 accuracy, in percent, of a linear layer trained on the features: the published schedule, no augmentation.

    Features are scaled to a mean norm of 1, so that one learning rate serves networks of any scale.

    >>> linear(train_features, train_labels, test_features, test_labels)
    95.5
    """
    scale = seen.norm(dim=1).mean().clamp(min=1e-12)
    seen, asked = seen / scale, asked / scale
    layer = begun(seen.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    train(layer, lambda places: (seen[part] for _, part in places), labels, training)
    return top1(layer, asked, truth)


def linear_of_views(
    seen: Seen,
    labels: Tensor,
    asked: Tensor,
    truth: Tensor,
    training: Training,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """The same of a layer that is trained on features as they are, of whatever is seen in each epoch; as published.

    >>> linear_of_views(anew(backbone, augmented, CIFAR), augmented.labels, test_features, test_labels, training)
    94.9
    """
    layer = begun(asked.shape[1], int(labels.max()) + 1, seed).to(device)
    train(layer, seen, labels, training, seed)
    return top1(layer, asked, truth)
