"""Projectors and predictors: multi-layer perceptrons from lists of widths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int], last_norm: bool = False) -> nn.Sequential:
    """Linear layers, a BatchNorm and a ReLU after each but the last; ``last_norm`` adds a BatchNorm without weights.

    A layer that a norm follows has no bias: the norm would take it away again.

    >>> mlp([512, 2048, 2048, 2048], last_norm=True)  # SimSiam's projector
    >>> mlp([2048, 512, 2048])                        # and its predictor
    """
    layers: list[nn.Module] = []
    *hidden, last = pairwise(widths)
    for width, following in hidden:
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(*last, bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(last[1], affine=False))
    return nn.Sequential(*layers)
