"""Analyses as CSV, with all digits: a line for each term, layer or point."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from ssql_det.analyze.analysis import Analysis, TermsAtBits, TermsByName, widths_of_weights
from ssql_det.analyze.terms import TERMS, Terms
from ssql_det.quant import Bits
from ssql_det.report.as_csv import Record, written

_TERMS = ("checkpoint", "method", "features", "spread", "pairs", "bits", *TERMS)
_WEIGHTS = (
    *("checkpoint", "method", "layer", "weights", "min", "max"),
    *("std", "kurtosis", "outliers", "farthest"),
)
_MAP = ("checkpoint", "bits", "image", "class", "x", "y")


def csv_files(found: Sequence[Analysis]) -> dict[str, str]:
    """The content of each file by its name.

    >>> csv_files([analysis])["terms.csv"].splitlines()[0]
    'checkpoint,method,features,spread,pairs,bits,quantization,contrastive,cross,total'
    """
    widths = widths_of_weights(found)
    return {
        "terms.csv": written(_TERMS, _terms(found)),
        "weights.csv": written((*_WEIGHTS, *(f"error at {bits}" for bits in widths)), _weights(found, widths)),
        "tsne.csv": written(_MAP, _points(found)),
    }


def terms_in(text: str) -> Mapping[str, TermsByName]:
    """What ``terms.csv`` was made from, by features.

    >>> terms_in(Path("analysis/terms.csv").read_text())["loss"]["ssql"].terms[Bits(2, 4)].quantization
    0.135
    """
    found: dict[str, dict[str, TermsAtBits]] = {}
    for line in csv.DictReader(io.StringIO(text)):
        of = found.setdefault(line["features"], {})
        before = of.get(line["checkpoint"])
        terms = Terms(**{name: float(line[name]) for name in TERMS})
        at_bits = {**(before.terms if before else {}), Bits.parse(line["bits"]): terms}
        of[line["checkpoint"]] = TermsAtBits(line["features"], float(line["spread"]), at_bits)
    return found


def _terms(found: Sequence[Analysis]) -> Iterator[Record]:
    for each in found:
        for of in each.terms:
            for bits, terms in of.terms.items():
                yield each.name, each.method, of.features, of.spread, each.pairs, str(bits), *vars(terms).values()


def _weights(found: Sequence[Analysis], widths: Sequence[Bits]) -> Iterator[Record]:
    for each in found:
        for layer in each.weights:
            figures = (layer.low, layer.high, layer.deviation, layer.kurtosis, layer.outliers, layer.farthest)
            errors = (layer.errors[bits] for bits in widths)
            yield each.name, each.method, layer.layer, layer.count, *figures, *errors


def _points(found: Sequence[Analysis]) -> Iterator[Record]:
    for each in found:
        for bits, places in each.map.places.items():
            for image, label, place in zip(each.map.images, each.map.labels.tolist(), places.tolist(), strict=True):
                yield each.name, str(bits), image, each.map.classes[label], *place
