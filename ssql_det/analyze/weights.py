"""The weights of each layer: how far they reach, how heavy their tails are, what rounding them costs.

A symmetric min-max grid is as coarse as the farthest weight of a channel makes it, so few far weights cost all others
their precision. Each is measured in its layer's own standard deviations, which no scale of the weights changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme, at_widths
from ssql_det.quant.hooks import float_weight, module_at
from ssql_det.quant.scheme import TRAINED

OUTLIER = 3.0  # standard deviations from the mean; of a normal distribution .27 % lie beyond


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
    full = {point.path: float_weight(backbone, point) for point in places}
    errors: dict[str, dict[Bits, float]] = {point.path: {} for point in places}

    def errors_at(bits: Bits) -> dict[str, float]:
        low = {point.path: cast(Tensor, module_at(backbone, point).weight) for point in places}
        return {path: relative_error(low[path], full[path]) for path in low}

    weights_alone = replace(scheme or Scheme(), norms=TRAINED)
    with torch.no_grad():
        quantization = Quantization(backbone, places, weights_alone)
        for width, found in at_widths(quantization, (each for each in widths if each.weight is not None), errors_at):
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
