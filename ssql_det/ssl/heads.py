"""Projectors and predictors: multi-layer perceptrons from lists of widths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int], norm: bool = True, last_norm: bool = False) -> nn.Sequential:
    """Linear layers, a BatchNorm and a ReLU after each but the last; ``last_norm`` adds a BatchNorm without weights.

    A layer that a norm follows has no bias: the norm would take it away again. ``norm=False`` leaves all norms out.

    >>> mlp([512, 2048, 2048, 2048], last_norm=True)  # SimSiam's projector
    >>> mlp([2048, 512, 2048])                        # and its predictor
    >>> mlp([512, 2048, 128], norm=False)             # MoCo v2's projector
    """
    layers: list[nn.Module] = []
    *hidden, last = pairwise(widths)
    for width, following in hidden:
        layers.append(nn.Linear(width, following, bias=not norm))
        layers += [nn.BatchNorm1d(following)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(*last, bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(last[1], affine=False))
    return nn.Sequential(*layers)
