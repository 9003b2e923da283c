"""What a quantized network's distance from its target is made of: the analysis of SSQL (Cao et al., ECCV 2022).

For the float network ``F``, the same weights quantized ``F^q``, two views ``x`` and ``x'`` of an image, and the float
target ``t`` that the second one gives::

    E |F^q(x) - t|^2  =  E |F^q(x) - F(x)|^2  +  E |F(x) - t|^2  +  2 E <F^q(x) - F(x), F(x) - t>
        total                quantization         contrastive                 cross

The paper's target is ``F`` of the other view. The identity holds for vectors of any origin, so ``F`` may end in a
predictor and ``t`` come from a moving average, as in the losses. Of vectors of unit length a squared distance is
``2 - 2 cos``: SimSiam's and BYOL's loss is ``contrastive / 2 - 1`` for the float network and ``total / 2 - 1`` for the
quantized one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """``total`` is measured by itself; the three others add up to it."""

    quantization: float
    contrastive: float
    cross: float
    total: float


TERMS = tuple(field.name for field in fields(Terms))


def terms(low: Tensor, full: Tensor, target: Tensor) -> Terms:
    """Means over the rows of ``F^q(x)``, ``F(x)`` and ``t``, each [N, D].

    >>> terms(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    Terms(quantization=1.0, contrastive=4.0, cross=4.0, total=9.0)
    """
    error, distance = low - full, full - target
    return Terms(
        quantization=_mean_product(error, error),
        contrastive=_mean_product(distance, distance),
        cross=2 * _mean_product(error, distance),
        total=_mean_product(low - target, low - target),
    )


def _mean_product(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum(dim=1).mean())
