"""Analyses as a page: terms at each bit-width, weights layer by layer, maps; checkpoints side by side."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from ssql_det.analyze.analysis import (
    BACKBONE,
    LOSS,
    OUTLIER,
    TERMS,
    Analysis,
    LayerWeights,
    Terms,
    TermsAtBits,
    TermsByName,
    group_terms_by_features,
    list_weight_widths,
)
from ssql_det.analyze.drawing import drawn
from ssql_det.core.rows import package_versions
from ssql_det.quant import Bits
from ssql_det.report.blocks import Block, Chart, CodeBlock, Collapsible, Curve, Figure, Heading, Paragraph, Table
from ssql_det.report.document import Document
from ssql_det.report.markup import escape_markup
from ssql_det.report.render_csv import Record, format_csv

_TITLES = {BACKBONE: "Features of the backbone", LOSS: "What the loss compares"}
_FIGURES: Mapping[str, Callable[[LayerWeights], str]] = {
    "Range": lambda layer: f"{layer.low:.3f} to {layer.high:.3f}",
    "Standard deviation": lambda layer: f"{layer.deviation:.4f}",
    "Excess kurtosis": lambda layer: f"{layer.kurtosis:.2f}",
    f"Weights beyond {OUTLIER:g} deviations, in percent": lambda layer: f"{100 * layer.outliers:.2f}",
    "Farthest weight, in deviations": lambda layer: f"{layer.farthest:.1f}",
}
_NOTHING = "-"
_TERMS = ("checkpoint", "method", "features", "spread", "pairs", "bits", *TERMS)
_WEIGHTS = (
    *("checkpoint", "method", "layer", "weights", "min", "max"),
    *("std", "kurtosis", "outliers", "farthest"),
)
_MAP = ("checkpoint", "bits", "image", "class", "x", "y")


def page(found: Sequence[Analysis], command: str) -> Document:
    """
    >>> as_html(page([analysis], "ssql-det analyze --checkpoints ssql.pth --data toy/crops"))
    """
    return Document(
        "What few bits do to a pretrained network",
        (
            Paragraph(f"One copy of weights at every bit-width. Made by `{escape_markup(command)}`."),
            _checkpoints(found),
            *_terms(found),
            *_weights(found),
            *_maps(found),
            Heading("Environment"),
            CodeBlock("\n".join(f"{name} {version}" for name, version in package_versions().items())),
        ),
    )


def _checkpoints(found: Sequence[Analysis]) -> Table:
    rows = [
        (
            *(each.name, escape_markup(each.method) or _NOTHING, each.architecture, escape_markup(each.shown)),
            *(escape_markup(each.file), each.sha256[:12]),
        )
        for each in found
    ]
    return Table(("checkpoint", "method", "network", "images", "file", "SHA-256"), tuple(rows), text_columns=6)


def build_term_tables(kinds: Mapping[str, TermsByName]) -> Iterator[Table]:
    """A table for each kind of features, of what :func:`group_terms_by_features` gives."""
    for features, of in kinds.items():
        widths = _widths(of)
        rows = tuple(
            (name, f"{found.spread:.2f}", term, *(_four(getattr(found.terms[bits], term)) for bits in widths))
            for name, found in of.items()
            for term in TERMS
        )
        yield Table(
            ("checkpoint", "spread", "term", *map(str, widths)), rows, text_columns=3, caption=_TITLES[features]
        )


def _terms(found: Sequence[Analysis]) -> Iterator[Block]:
    counts = " and ".join(map(str, sorted({each.pairs for each in found})))
    yield Heading("Terms of the loss")
    yield Paragraph(
        "A quantized network's squared distance from its float target is the sum of three terms: how far quantization "
        "moves its features, how far the float features are from the target (the contrastive term), and the cross "
        "term, twice the product of both differences. Features have unit length, so a distance of d is a cosine of "
        f"1 - d / 2. Means over pairs of views ({counts}), both ways round, in evaluation mode."
    )
    yield Paragraph(
        "A spread near 1: float features point everywhere; near 0: they have collapsed, and nothing is left to move."
    )
    kinds = group_terms_by_features(found)
    yield from build_term_tables(kinds)
    for features, of in kinds.items():
        yield _quantization(features, of)
    without = [each.name for each in found if LOSS not in [terms.features for terms in each.terms]]
    if without:
        yield Paragraph(
            f"Without projector and predictor in their files, so of the backbone alone: {', '.join(without)}."
        )


def _quantization(features: str, of: TermsByName) -> Chart:
    widths = _widths(of)
    curves = tuple(Curve(name, tuple(found.terms[bits].quantization for bits in widths)) for name, found in of.items())
    title = f"Quantization term over bit-widths: {_TITLES[features].lower()}"
    return Chart(f"quantization-{features}", title, tuple(map(str, widths)), curves, "squared distance")


def _four(value: float) -> str:
    """Digits; next to nothing has no sign."""
    return f"{round(value, 4) + 0.0:.4f}"


def _widths(of: TermsByName) -> tuple[Bits, ...]:
    return tuple(dict.fromkeys(bits for found in of.values() for bits in found.terms))


def _weights(found: Sequence[Analysis]) -> Iterator[Block]:
    widths = list_weight_widths(found)
    yield Heading("Weights")
    yield Paragraph(
        f"An outlier lies beyond {OUTLIER:g} standard deviations of its layer. Excess kurtosis is 0 for a normal "
        "distribution and -1.2 for a uniform one. Errors are relative, of weights rounded per output channel; the stem "
        "is rounded to 8 bits at every bit-width, as it is in use."
    )
    yield Table(
        (
            "checkpoint",
            "heaviest tails in",
            "kurtosis there",
            "median",
            "outliers, %",
            *(f"error at {bits}" for bits in widths),
        ),
        tuple(_summary(each, widths) for each in found),
        text_columns=2,
    )
    errors = {f"Relative error at {bits}": partial(_error, bits) for bits in widths}
    figures: dict[str, Callable[[LayerWeights], str]] = {**_FIGURES, **errors}
    yield Collapsible("Every layer", tuple(_by_layer(found, title, figure) for title, figure in figures.items()))


def _error(bits: Bits, layer: LayerWeights) -> str:
    return f"{layer.errors[bits]:.4f}"


def _summary(of: Analysis, widths: Sequence[Bits]) -> tuple[str, ...]:
    heaviest = max(of.weights, key=lambda layer: layer.kurtosis)
    outliers = sum(layer.outliers * layer.count for layer in of.weights) / sum(layer.count for layer in of.weights)
    return (
        *(of.name, heaviest.layer, f"{heaviest.kurtosis:.2f}"),
        f"{statistics.median(layer.kurtosis for layer in of.weights):.2f}",
        f"{100 * outliers:.2f}",
        *(f"{statistics.fmean(layer.errors[bits] for layer in of.weights):.4f}" for bits in widths),
    )


def _by_layer(found: Sequence[Analysis], title: str, figure: Callable[[LayerWeights], str]) -> Table:
    cells = {each.name: {layer.layer: figure(layer) for layer in each.weights} for each in found}
    layers = dict.fromkeys(layer for of in cells.values() for layer in of)
    rows = tuple((layer, *(of.get(layer, _NOTHING) for of in cells.values())) for layer in layers)
    return Table(("layer", *cells), rows, caption=title)


def _maps(found: Sequence[Analysis]) -> Iterator[Block]:
    yield Heading("Features in the plane")
    yield Paragraph(
        "t-SNE of the backbone's features. All bit-widths of a checkpoint are embedded together, so panels have the "
        "same axes and a point that quantization does not move stays where it is. Distances between groups mean "
        "little, and maps of two checkpoints have nothing in common but the images."
    )
    for each in found:
        widths = ", ".join(map(str, each.map.places))
        words = f"{each.name}: {len(each.map.labels)} images at {widths}, coloured by class"
        yield Figure(f"tsne_{each.name}.png", drawn(each.map), words)


def build_csv_files(found: Sequence[Analysis]) -> dict[str, str]:
    """The content of each file by its name.

    >>> build_csv_files([analysis])["terms.csv"].splitlines()[0]
    'checkpoint,method,features,spread,pairs,bits,quantization,contrastive,cross,total'
    """
    widths = list_weight_widths(found)
    return {
        "terms.csv": format_csv(_TERMS, _term_records(found)),
        "weights.csv": format_csv(
            (*_WEIGHTS, *(f"error at {bits}" for bits in widths)), _weight_records(found, widths)
        ),
        "tsne.csv": format_csv(_MAP, _map_records(found)),
    }


def read_terms(text: str) -> Mapping[str, TermsByName]:
    """What ``terms.csv`` was made from, by features.

    >>> read_terms(Path("analysis/terms.csv").read_text())["loss"]["ssql"].terms[Bits(2, 4)].quantization
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


def _term_records(found: Sequence[Analysis]) -> Iterator[Record]:
    for each in found:
        for of in each.terms:
            for bits, terms in of.terms.items():
                yield each.name, each.method, of.features, of.spread, each.pairs, str(bits), *vars(terms).values()


def _weight_records(found: Sequence[Analysis], widths: Sequence[Bits]) -> Iterator[Record]:
    for each in found:
        for layer in each.weights:
            figures = (layer.low, layer.high, layer.deviation, layer.kurtosis, layer.outliers, layer.farthest)
            errors = (layer.errors[bits] for bits in widths)
            yield each.name, each.method, layer.layer, layer.count, *figures, *errors


def _map_records(found: Sequence[Analysis]) -> Iterator[Record]:
    for each in found:
        for bits, places in each.map.places.items():
            for image, label, place in zip(each.map.images, each.map.labels.tolist(), places.tolist(), strict=True):
                yield each.name, str(bits), image, each.map.classes[label], *place
