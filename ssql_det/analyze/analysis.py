"""Analysis of a checkpoint: loss terms of its quantized features, and statistics of its weights.

A min-max quantizer takes the scale of a channel from its largest weight, so a few outliers make the quantization of all
other weights coarser. Outliers are measured in standard deviations of their layer, so layers can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme, evaluate_at_bit_widths
from ssql_det.quant.hooks import get_float_weight, get_module
from ssql_det.quant.scheme import TRAINED

BACKBONE, LOSS = "backbone", "loss"  # kinds of features: of the backbone, and as compared by the loss (after the heads)
OUTLIER = 3.0  # standard deviations from the mean; .27 % of a normal distribution lie beyond


@dataclass(frozen=True)
class LossTerms:
    """The terms of a quantized network's squared distance from its target, as in SSQL (Cao et al., ECCV 2022).

    For the float network ``F``, the same weights quantized ``F^q``, two views ``x`` and ``x'`` of an image, and the
    float target ``t`` of ``x'``::

        E |F^q(x) - t|^2  =  E |F^q(x) - F(x)|^2  +  E |F(x) - t|^2  +  2 E <F^q(x) - F(x), F(x) - t>
            total                quantization         contrastive                 cross

    The paper's target is ``F(x')``. The identity holds for any vectors, so ``F`` may include a predictor, and ``t``
    may come from a momentum encoder. For vectors of unit length a squared distance is ``2 - 2 cos``, so the
    loss of SimSiam and BYOL is ``contrastive / 2 - 1`` for the float network and ``total / 2 - 1`` for the quantized
    one. ``total`` is computed independently of the other three.
    """

    quantization: float
    contrastive: float
    cross: float
    total: float


TERMS = tuple(field.name for field in fields(LossTerms))


def compute_terms(quantized: Tensor, float_features: Tensor, target: Tensor) -> LossTerms:
    """The terms of ``F^q(x)``, ``F(x)`` and ``t``, each [N, D], averaged over the N views.

    >>> compute_terms(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    LossTerms(quantization=1.0, contrastive=4.0, cross=4.0, total=9.0)
    """
    error, distance = quantized - float_features, float_features - target
    return LossTerms(
        quantization=_mean_inner_product(error, error),
        contrastive=_mean_inner_product(distance, distance),
        cross=2 * _mean_inner_product(error, distance),
        total=_mean_inner_product(quantized - target, quantized - target),
    )


def _mean_inner_product(first: Tensor, second: Tensor) -> float:
    return float((first * second).sum(dim=1).mean())


@dataclass(frozen=True)
class TermsByBitWidth:
    """The loss terms of one kind of features at each bit-width; all are small if the features have collapsed."""

    kind: str  # BACKBONE or LOSS
    spread: float  # of the float features: near 1 they point in all directions; near 0 they have collapsed
    terms: Mapping[Bits, LossTerms]


TermsByCheckpoint: TypeAlias = Mapping[str, TermsByBitWidth]  # keys: names of checkpoints


@dataclass(frozen=True, eq=False)
class Embedding:
    """t-SNE of N ``images`` at all bit-widths together: ``coordinates`` [N, 2] for each bit-width."""

    coordinates: Mapping[Bits, Tensor]
    images: tuple[str, ...]  # file names
    labels: Tensor  # [N], indices into classes
    classes: tuple[str, ...]  # names


@dataclass(frozen=True, eq=False)
class Analysis:
    """The analysis of one checkpoint. ``name`` identifies the checkpoint in tables, pages and file names; ``protocol``
    describes images and scheme in words; ``pairs`` is the number of pairs of views that the terms are averaged over."""

    name: str
    file: str  # name, without the folder
    sha256: str  # of the file
    method: str  # empty if the file does not store it
    architecture: str
    protocol: str
    pairs: int
    terms: tuple[TermsByBitWidth, ...]  # one for each kind of features
    layers: tuple[LayerStatistics, ...]
    embedding: Embedding


def list_weight_bit_widths(analyses: Sequence[Analysis]) -> tuple[Bits, ...]:
    """The bit-widths at which weights were quantized, without duplicates."""
    return tuple(dict.fromkeys(bits for each in analyses for layer in each.layers for bits in layer.errors))


def group_terms_by_features(analyses: Sequence[Analysis]) -> dict[str, TermsByCheckpoint]:
    """The terms by kind of features, then by checkpoint; not every checkpoint has both kinds."""
    terms_by_kind = {
        kind: {each.name: terms for each in analyses for terms in each.terms if terms.kind == kind}
        for kind in (BACKBONE, LOSS)
    }
    return {kind: by_checkpoint for kind, by_checkpoint in terms_by_kind.items() if by_checkpoint}


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of a layer's weights.

    ``kurtosis`` is excess kurtosis: 0 for a normal distribution, -1.2 for a uniform one, -3 for constant weights.
    ``outliers`` is the fraction of weights more than ``OUTLIER`` standard deviations from the mean, ``farthest`` the
    largest such distance. ``errors`` are relative quantization errors, ``|w_q - w| / |w|``, by bit-width.
    """

    layer: str  # module path
    count: int  # of weights
    minimum: float
    maximum: float
    std: float
    kurtosis: float
    outliers: float
    farthest: float
    errors: Mapping[Bits, float]


def measure_layers(
    backbone: nn.Module, points: Sequence[QuantPoint], bit_widths: Sequence[Bits], scheme: Scheme | None = None
) -> tuple[LayerStatistics, ...]:
    """Statistics of each quantized layer in the network's order, with the error at each bit-width that quantizes
    weights.

    A layer whose quantization point fixes the bit-width, such as an 8-bit stem, has the same error at each of them.
    Without a ``scheme`` weights are quantized as published.

    >>> from ssql_det.quant import quant_points
    >>> measure_layers(model, quant_points(model), [Bits(8, 8), Bits(4, 4)])[0].layer
    'conv1'
    """
    weight_points = [point for point in points if point.is_weight]
    float_weights = {point.path: get_float_weight(backbone, point) for point in weight_points}
    errors: dict[str, dict[Bits, float]] = {point.path: {} for point in weight_points}

    def measure_errors(bits: Bits) -> dict[str, float]:
        quantized = {point.path: cast(Tensor, get_module(backbone, point).weight) for point in weight_points}
        return {path: relative_error(quantized[path], float_weights[path]) for path in quantized}

    weight_scheme = replace(scheme or Scheme(), norms=TRAINED)  # norm statistics do not change weights
    weight_bit_widths = (bits for bits in bit_widths if bits.weight is not None)
    with torch.no_grad():
        quantization = Quantization(backbone, weight_points, weight_scheme)
        for bits, layer_errors in evaluate_at_bit_widths(quantization, weight_bit_widths, measure_errors):
            for path, error in layer_errors.items():
                errors[path][bits] = error
    return tuple(measure_weight(path, weight.detach(), errors[path]) for path, weight in float_weights.items())


def measure_weight(layer: str, weight: Tensor, errors: Mapping[Bits, float]) -> LayerStatistics:
    """Statistics over all weights of one layer.

    >>> measure_weight("conv1", torch.tensor([-1.0, 1.0]), {}).kurtosis
    -2.0
    """
    weight = weight.double().flatten()
    centred = weight - weight.mean()
    std = centred.square().mean().sqrt()
    z_scores = centred / std if std else centred
    return LayerStatistics(
        layer=layer,
        count=weight.numel(),
        minimum=float(weight.min()),
        maximum=float(weight.max()),
        std=float(std),
        kurtosis=float(z_scores.pow(4).mean()) - 3,
        outliers=float((z_scores.abs() > OUTLIER).double().mean()),
        farthest=float(z_scores.abs().max()),
        errors=errors,
    )


def relative_error(quantized: Tensor, reference: Tensor) -> float:
    """``|quantized - reference| / |reference|``; 0 if the reference is 0.

    >>> round(relative_error(torch.tensor([3.0, 3.0]), torch.tensor([3.0, 4.0])), 4)
    0.2
    """
    quantized, reference = quantized.double(), reference.double()
    norm = float(reference.norm())
    return float((quantized - reference).norm()) / norm if norm else 0.0
