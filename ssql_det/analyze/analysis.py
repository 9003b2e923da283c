"""What is found of one checkpoint: values that tables and pages are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ssql_det.analyze.terms import Terms
from ssql_det.analyze.weights import LayerWeights
from ssql_det.quant import Bits

BACKBONE, LOSS = "backbone", "loss"  # which features: the backbone's, or those that the loss compares


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


def widths_of_weights(found: Sequence[Analysis]) -> tuple[Bits, ...]:
    """Those at which any layer was rounded, each once."""
    return tuple(dict.fromkeys(bits for each in found for layer in each.weights for bits in layer.errors))


def by_features(found: Sequence[Analysis]) -> dict[str, TermsByName]:
    """The terms of each kind of features, of those checkpoints that have them.

    >>> by_features(found)["loss"]["ssql"].terms[Bits(2, 4)].quantization
    0.135
    """
    kinds = {
        features: {each.name: terms for each in found for terms in each.terms if terms.features == features}
        for features in (BACKBONE, LOSS)
    }
    return {features: of for features, of in kinds.items() if of}
