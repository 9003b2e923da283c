"""What is found of one checkpoint: values that tables and pages are made from.

A symmetric min-max grid is as coarse as the farthest weight of a channel makes it, so few far weights cost all others
their precision: each is measured in its layer's own standard deviations, which no scale of the weights changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme, evaluate_at_widths
from ssql_det.quant.hooks import get_float_weight, get_module
from ssql_det.quant.scheme import TRAINED

BACKBONE, LOSS = "backbone", "loss"  # which features: the backbone's, or those that the loss compares
OUTLIER = 3.0  # standard deviations from the mean; of a normal distribution .27 % lie beyond


@dataclass(frozen=True)
class Terms:
    """What a quantized network's distance from its target is made of: the analysis of SSQL (Cao et al., ECCV 2022).

    For the float network ``F``, the same weights quantized ``F^q``, two views ``x`` and ``x'`` of an image, and the
    float target ``t`` that the second one gives::

        E |F^q(x) - t|^2  =  E |F^q(x) - F(x)|^2  +  E |F(x) - t|^2  +  2 E <F^q(x) - F(x), F(x) - t>
            total                quantization         contrastive                 cross

    The paper's target is ``F`` of the other view. The identity holds for vectors of any origin, so ``F`` may end in a
    predictor and ``t`` come from a moving average, as in the losses. Of vectors of unit length a squared distance is
    ``2 - 2 cos``: SimSiam's and BYOL's loss is ``contrastive / 2 - 1`` for the float network and ``total / 2 - 1`` for
    the quantized one. ``total`` is measured by itself; the three others add up to it.
    """

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


@dataclass(frozen=True)
class TermsAtBits:
    """The terms of some features at each bit-width. ``spread`` tells whether the float ones have collapsed, which makes
    all terms small: near 1 they point everywhere, at 0 all are one."""

    features: str
    spread: float
    terms: Mapping[Bits, Terms]


TermsByName: TypeAlias = Mapping[str, TermsAtBits]  # by a checkpoint's name


@dataclass(frozen=True, eq=False)
class Map:
    """Features of images at each bit-width, embedded together: ``places`` [N, 2] each, of the same N ``images``."""

    places: Mapping[Bits, Tensor]
    images: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Analysis:
    """``name`` is the checkpoint's in tables, pages and file names; ``pairs`` is how many pairs of views the terms are
    means over; ``shown`` says how images were."""

    name: str
    file: str
    sha256: str
    method: str
    architecture: str
    shown: str
    pairs: int
    terms: tuple[TermsAtBits, ...]
    weights: tuple[LayerWeights, ...]
    map: Map


def list_weight_widths(found: Sequence[Analysis]) -> tuple[Bits, ...]:
    """Those at which any layer was rounded, each once."""
    return tuple(dict.fromkeys(bits for each in found for layer in each.weights for bits in layer.errors))


def group_terms_by_features(found: Sequence[Analysis]) -> dict[str, TermsByName]:
    """The terms of each kind of features, of those checkpoints that have them.

    >>> group_terms_by_features(found)["loss"]["ssql"].terms[Bits(2, 4)].quantization
    0.135
    """
    kinds = {
        features: {each.name: terms for each in found for terms in each.terms if terms.features == features}
        for features in (BACKBONE, LOSS)
    }
    return {features: of for features, of in kinds.items() if of}


@dataclass(frozen=True)
class LayerWeights:
    """``kurtosis`` is the excess over a normal distribution's 3: of a uniform one -1.2. ``outliers`` is the share of
    weights farther than ``OUTLIER`` deviations from the mean, ``farthest`` how far the last one is. ``errors`` are
    relative, ``|w_q - w| / |w|``, by bit-width. Weights that are all equal have no tails: their kurtosis is -3.
    """

    layer: str
    count: int
    low: float
    high: float
    deviation: float
    kurtosis: float
    outliers: float
    farthest: float
    errors: Mapping[Bits, float]


def layer_weights(
    backbone: nn.Module, points: Sequence[QuantPoint], widths: Sequence[Bits], scheme: Scheme | None = None
) -> tuple[LayerWeights, ...]:
    """Every layer whose weight is quantized, in the network's order, with its error at each width that rounds weights.

    Weights are rounded where the network is quantized, so a stem that stays at 8 bits has the error of 8.

    >>> layer_weights(backbone, quant_points(backbone), parse_widths("8,4,2w4a"))[0].layer
    'conv1'
    """
    places = [point for point in points if point.is_weight]
    full = {point.path: get_float_weight(backbone, point) for point in places}
    errors: dict[str, dict[Bits, float]] = {point.path: {} for point in places}

    def errors_at(bits: Bits) -> dict[str, float]:
        low = {point.path: cast(Tensor, get_module(backbone, point).weight) for point in places}
        return {path: relative_error(low[path], full[path]) for path in low}

    weights_alone = replace(scheme or Scheme(), norms=TRAINED)
    with torch.no_grad():
        quantization = Quantization(backbone, places, weights_alone)
        for width, found in evaluate_at_widths(
            quantization, (each for each in widths if each.weight is not None), errors_at
        ):
            for path, error in found.items():
                errors[path][width] = error
    return tuple(described(path, weight.detach(), errors[path]) for path, weight in full.items())


def described(layer: str, weight: Tensor, errors: Mapping[Bits, float]) -> LayerWeights:
    """The figures of one layer, of all its weights together.

    >>> described("conv1", torch.tensor([-1.0, 1.0]), {}).kurtosis
    -2.0
    """
    weight = weight.double().flatten()
    away = weight - weight.mean()
    deviation = away.square().mean().sqrt()
    steps = away / deviation if deviation else away
    return LayerWeights(
        layer=layer,
        count=weight.numel(),
        low=float(weight.min()),
        high=float(weight.max()),
        deviation=float(deviation),
        kurtosis=float(steps.pow(4).mean()) - 3,
        outliers=float((steps.abs() > OUTLIER).double().mean()),
        farthest=float(steps.abs().max()),
        errors=errors,
    )


def relative_error(low: Tensor, full: Tensor) -> float:
    """``|low - full| / |full|``; of nothing but zeros, 0.

    >>> relative_error(torch.tensor([3.0, 3.0]), torch.tensor([3.0, 4.0]))
    0.2
    """
    low, full = low.double(), full.double()
    size = float(full.norm())
    return float((low - full).norm()) / size if size else 0.0
