"""Projectors and predictors: multi-layer perceptrons from lists of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn


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


def mlp_of(state: Mapping[str, Tensor]) -> nn.Sequential:
    """The one whose ``state_dict`` this is; an error where :func:`mlp` makes none that it fits.

    >>> mlp_of(mlp([512, 128, 512]).state_dict())[3]
    Linear(in_features=128, out_features=512, bias=True)
    """
    linears = [name for name, tensor in state.items() if tensor.ndim == 2]
    if not linears:
        raise ValueError("there is no linear layer in it")
    norms = [name for name in state if name.endswith("running_mean")]
    has_last = bool(norms) and _place(norms[-1]) > _place(linears[-1])
    widths = [state[linears[0]].shape[1], *(state[name].shape[0] for name in linears)]
    head = mlp(widths, norm=len(norms) > has_last, last_norm=has_last)
    head.load_state_dict(dict(state))
    return head


def _place(name: str) -> int:
    return int(name.split(".")[0])
