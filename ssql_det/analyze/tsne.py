"""t-SNE, exact: points of many dimensions as a map in the plane (van der Maaten and Hinton, JMLR 2008).

``P`` tells how near each pair of points is, by Gaussians as wide as the perplexity asks for; ``Q`` tells it of the map,
by Student's t. The map follows the gradient of ``KL(P, Q)`` with momentum, for a while with ``P`` exaggerated so that
groups can pass each other. It begins with the two principal components (Kobak and Berens, 2019), and its rate grows
with the points (Belkina et al., 2019). Time and memory go with the square of their number: a few thousand at most.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EXAGGERATION, _EXAGGERATED = 12.0, 250  # how much, and for how many steps
_MOMENTA = (0.5, 0.8)  # meanwhile, and afterwards
_START = 1e-4  # the map's first extent
_HALVINGS = 64
_NEAR = 1e-6  # of an entropy


def tsne(points: Tensor, perplexity: float = 30.0, seed: int = 0, steps: int = 750) -> Tensor:
    """A map [N, 2] of points [N, D], in their precision; of few points with a third of them as perplexity, at most.

    The seed is for a hint of noise, which parts points that are equal.

    >>> tsne(torch.randn(300, 64)).shape
    torch.Size([300, 2])
    """
    joint = joint_probabilities(squared_distances(points), min(perplexity, (len(points) - 1) / 3))
    exaggerated = _EXAGGERATION * joint
    rate = max(len(points) / _EXAGGERATION / 4, 50.0)
    place = _principal(points, seed)
    move, gains = torch.zeros_like(place), torch.ones_like(place)
    for step in range(steps):
        is_early = step < _EXAGGERATED
        gradient = kl_gradient(exaggerated if is_early else joint, place)
        gains = torch.where(gradient.sign() == move.sign(), gains * 0.8, gains + 0.2).clamp(min=0.01)
        move = _MOMENTA[0 if is_early else 1] * move - rate * gains * gradient
        place = place + move
    return place - place.mean(dim=0)


def squared_distances(points: Tensor) -> Tensor:
    """Between all pairs [N, N]."""
    sizes = points.square().sum(dim=1)
    # In place: the system takes longer to hand out a matrix of this size than it takes to compute one.
    squares = torch.addmm(sizes[:, None], points, points.T, alpha=-2).add_(sizes)
    return squares.clamp_(min=0).fill_diagonal_(0)


def joint_probabilities(squares: Tensor, perplexity: float) -> Tensor:
    """``P`` [N, N] of squared distances: symmetric, its sum is 1."""
    conditional = conditional_probabilities(squares, perplexity)
    return (conditional + conditional.T) / (2 * len(squares))


def conditional_probabilities(squares: Tensor, perplexity: float) -> Tensor:
    """How near row's point finds each other one: Gaussian, so wide that the row's entropy is ``log(perplexity)``.

    Widths are found by bisection, all rows at once.

    >>> conditional_probabilities(squared_distances(torch.randn(100, 8)), perplexity=20.0).sum(dim=1)
    tensor([1., 1., ...])
    """
    others = squares + torch.diag(squares.new_full((len(squares),), math.inf))
    finite = torch.where(others.isinf(), 0, others)
    low, high = squares.new_zeros(len(squares)), squares.new_full((len(squares),), math.inf)
    sharpness = 1 / squares.mean(dim=1).clamp(min=torch.finfo(squares.dtype).eps)
    for _ in range(_HALVINGS):
        rows = torch.softmax(-others * sharpness[:, None], dim=1)
        entropy = torch.logsumexp(-others * sharpness[:, None], dim=1) + sharpness * (rows * finite).sum(dim=1)
        excess = entropy - math.log(perplexity)
        if (excess.abs() < _NEAR).all():
            break
        low, high = torch.where(excess > 0, sharpness, low), torch.where(excess > 0, high, sharpness)
        sharpness = torch.where(high.isinf(), 2 * sharpness, (low + high) / 2)
    return torch.softmax(-others * sharpness[:, None], dim=1)


def kl_gradient(joint: Tensor, place: Tensor) -> Tensor:
    """Of ``KL(P, Q)`` with respect to the map: ``4 sum_j (p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2)``."""
    nearness = _nearness(place)
    pull = joint.sub(nearness, alpha=1 / float(nearness.sum())).mul_(nearness)
    return 4 * (pull.sum(dim=1, keepdim=True) * place - pull @ place)


def _nearness(place: Tensor) -> Tensor:
    """Student's t with one degree of freedom, without its constant; a point is nothing to itself."""
    return squared_distances(place).fill_diagonal_(math.inf).add_(1).reciprocal_()


def _principal(points: Tensor, seed: int) -> Tensor:
    """The two components of most variance, small; a component's sign is that of its largest part."""
    _, _, axes = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(dim=1, keepdim=True)).sign()
    place = (points - points.mean(dim=0)) @ axes.T
    place = place / place[:, :1].std().clamp(min=torch.finfo(points.dtype).tiny)
    noise = torch.randn(place.shape, generator=torch.Generator().manual_seed(seed), dtype=points.dtype)
    return _START * (place + 0.01 * noise)
