"""The report of several analyses, with checkpoints side by side, and their numbers as CSV files."""

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
    LayerStatistics,
    LossTerms,
    TermsByBitWidth,
    TermsByCheckpoint,
    group_terms_by_features,
    list_weight_bit_widths,
)
from ssql_det.analyze.drawing import draw_embedding
from ssql_det.core.rows import package_versions
from ssql_det.quant import Bits
from ssql_det.report.blocks import Block, Chart, CodeBlock, Collapsible, Curve, Figure, Heading, Paragraph, Table
from ssql_det.report.document import Document
from ssql_det.report.markup import escape_markup
from ssql_det.report.render_csv import Record, format_csv

_TITLES = {BACKBONE: "Features of the backbone", LOSS: "Features compared by the loss"}
# Title of a table that has a row for each layer -> the cell for a layer.
_LAYER_TABLES: Mapping[str, Callable[[LayerStatistics], str]] = {
    "Range": lambda layer: f"{layer.minimum:.3f} to {layer.maximum:.3f}",
    "Standard deviation": lambda layer: f"{layer.std:.4f}",
    "Excess kurtosis": lambda layer: f"{layer.kurtosis:.2f}",
    f"Weights beyond {OUTLIER:g} standard deviations, in percent": lambda layer: f"{100 * layer.outliers:.2f}",
    "Farthest weight, in standard deviations": lambda layer: f"{layer.farthest:.1f}",
}
_MISSING = "-"  # cell without a value
_TERM_COLUMNS = ("checkpoint", "method", "features", "spread", "pairs", "bits", *TERMS)
_WEIGHT_COLUMNS = (
    *("checkpoint", "method", "layer", "weights", "min", "max"),
    *("std", "kurtosis", "outliers", "farthest"),
)
_EMBEDDING_COLUMNS = ("checkpoint", "bits", "image", "class", "x", "y")


def build_page(analyses: Sequence[Analysis], command: str) -> Document:
    """A report of several checkpoints side by side; ``command`` is the command line that wrote the report."""
    return Document(
        "The effect of low bit-widths on pretrained networks",
        (
            Paragraph(f"The same weights at every bit-width. Written by `{escape_markup(command)}`."),
            _build_checkpoint_table(analyses),
            *_build_term_blocks(analyses),
            *_build_weight_blocks(analyses),
            *_build_embedding_blocks(analyses),
            Heading("Environment"),
            CodeBlock("\n".join(f"{name} {version}" for name, version in package_versions().items())),
        ),
    )


def _build_checkpoint_table(analyses: Sequence[Analysis]) -> Table:
    rows = [
        (
            *(each.name, escape_markup(each.method) or _MISSING, each.architecture, escape_markup(each.protocol)),
            *(escape_markup(each.file), each.sha256[:12]),
        )
        for each in analyses
    ]
    return Table(("checkpoint", "method", "network", "images", "file", "SHA-256"), tuple(rows), text_columns=6)


def build_term_tables(terms_by_kind: Mapping[str, TermsByCheckpoint]) -> Iterator[Table]:
    """One table for each kind of features; terms are grouped as by :func:`group_terms_by_features` or
    :func:`read_terms`."""
    for kind, by_checkpoint in terms_by_kind.items():
        bit_widths = _list_bit_widths(by_checkpoint)
        rows = tuple(
            (name, f"{each.spread:.2f}", term, *(_format_term(getattr(each.terms[bits], term)) for bits in bit_widths))
            for name, each in by_checkpoint.items()
            for term in TERMS
        )
        yield Table(
            ("checkpoint", "spread", "term", *map(str, bit_widths)), rows, text_columns=3, caption=_TITLES[kind]
        )


def _build_term_blocks(analyses: Sequence[Analysis]) -> Iterator[Block]:
    num_pairs = " and ".join(map(str, sorted({each.pairs for each in analyses})))
    yield Heading("Terms of the loss")
    yield Paragraph(
        "The squared distance of quantized features from their float target is the sum of three terms: how far "
        "quantization moves the features, how far the float features are from the target (the contrastive term), and "
        "the cross term, twice the inner product of the two differences. Features have unit length, so a squared "
        f"distance of d is a cosine of 1 - d / 2. Means over {num_pairs} pairs of views, each view compared with the "
        "other, in evaluation mode."
    )
    yield Paragraph(
        "Spread: near 1 the float features point in all directions; near 0 they have collapsed, so that quantization "
        "cannot move them."
    )
    terms_by_kind = group_terms_by_features(analyses)
    yield from build_term_tables(terms_by_kind)
    for kind, by_checkpoint in terms_by_kind.items():
        yield _build_quantization_chart(kind, by_checkpoint)
    without_heads = [each.name for each in analyses if LOSS not in [terms.kind for terms in each.terms]]
    if without_heads:
        yield Paragraph(f"Backbone only, because the file has no projector and predictor: {', '.join(without_heads)}.")


def _build_quantization_chart(kind: str, by_checkpoint: TermsByCheckpoint) -> Chart:
    bit_widths = _list_bit_widths(by_checkpoint)
    curves = tuple(
        Curve(name, tuple(each.terms[bits].quantization for bits in bit_widths)) for name, each in by_checkpoint.items()
    )
    title = f"Quantization term over bit-widths: {_TITLES[kind].lower()}"
    return Chart(f"quantization-{kind}", title, tuple(map(str, bit_widths)), curves, "squared distance")


def _format_term(value: float) -> str:
    """Four decimals, without the sign of a negative zero."""
    return f"{round(value, 4) + 0.0:.4f}"


def _list_bit_widths(by_checkpoint: TermsByCheckpoint) -> tuple[Bits, ...]:
    return tuple(dict.fromkeys(bits for each in by_checkpoint.values() for bits in each.terms))


def _build_weight_blocks(analyses: Sequence[Analysis]) -> Iterator[Block]:
    bit_widths = list_weight_bit_widths(analyses)
    yield Heading("Weights")
    yield Paragraph(
        f"An outlier is a weight beyond {OUTLIER:g} standard deviations of its layer. Excess kurtosis is 0 for a "
        "normal distribution and -1.2 for a uniform one. Errors are relative errors of weights quantized per output "
        "channel; the stem has 8 bits at every bit-width."
    )
    yield Table(
        (
            "checkpoint",
            "heaviest tails in",
            "kurtosis there",
            "median",
            "outliers, %",
            *(f"error at {bits}" for bits in bit_widths),
        ),
        tuple(_summarize_weights(each, bit_widths) for each in analyses),
        text_columns=2,
    )
    error_tables = {f"Relative error at {bits}": partial(_format_error, bits) for bits in bit_widths}
    tables: dict[str, Callable[[LayerStatistics], str]] = {**_LAYER_TABLES, **error_tables}
    yield Collapsible(
        "Every layer", tuple(_build_layer_table(analyses, title, get_cell) for title, get_cell in tables.items())
    )


def _format_error(bits: Bits, layer: LayerStatistics) -> str:
    return f"{layer.errors[bits]:.4f}"


def _summarize_weights(analysis: Analysis, bit_widths: Sequence[Bits]) -> tuple[str, ...]:
    layers = analysis.layers
    heaviest = max(layers, key=lambda layer: layer.kurtosis)
    outliers = sum(layer.outliers * layer.count for layer in layers) / sum(layer.count for layer in layers)
    return (
        *(analysis.name, heaviest.layer, f"{heaviest.kurtosis:.2f}"),
        f"{statistics.median(layer.kurtosis for layer in layers):.2f}",
        f"{100 * outliers:.2f}",
        *(f"{statistics.fmean(layer.errors[bits] for layer in layers):.4f}" for bits in bit_widths),
    )


def _build_layer_table(analyses: Sequence[Analysis], title: str, get_cell: Callable[[LayerStatistics], str]) -> Table:
    columns = {each.name: {layer.layer: get_cell(layer) for layer in each.layers} for each in analyses}
    layers = dict.fromkeys(layer for column in columns.values() for layer in column)
    rows = tuple((layer, *(column.get(layer, _MISSING) for column in columns.values())) for layer in layers)
    return Table(("layer", *columns), rows, caption=title)


def _build_embedding_blocks(analyses: Sequence[Analysis]) -> Iterator[Block]:
    yield Heading("t-SNE of the features")
    yield Paragraph(
        "t-SNE of the backbone's features. All bit-widths of a checkpoint are embedded together, so panels have the "
        "same axes, and an image whose features quantization does not change has the same point in each. Distances "
        "between clusters mean little, and the axes of two checkpoints are unrelated."
    )
    for each in analyses:
        bit_widths = ", ".join(map(str, each.embedding.coordinates))
        caption = f"{each.name}: {len(each.embedding.labels)} images at {bit_widths}, coloured by class"
        yield Figure(f"tsne_{each.name}.png", draw_embedding(each.embedding), caption)


def build_csv_files(analyses: Sequence[Analysis]) -> dict[str, str]:
    """The contents of ``terms.csv``, ``weights.csv`` and ``tsne.csv``, by file name."""
    bit_widths = list_weight_bit_widths(analyses)
    weight_columns = (*_WEIGHT_COLUMNS, *(f"error at {bits}" for bits in bit_widths))
    return {
        "terms.csv": format_csv(_TERM_COLUMNS, _build_term_records(analyses)),
        "weights.csv": format_csv(weight_columns, _build_weight_records(analyses, bit_widths)),
        "tsne.csv": format_csv(_EMBEDDING_COLUMNS, _build_embedding_records(analyses)),
    }


def read_terms(text: str) -> Mapping[str, TermsByCheckpoint]:
    """Parse the content of ``terms.csv``: the terms by kind of features, then by checkpoint.

    >>> text = "checkpoint,features,spread,bits,quantization,contrastive,cross,total\\nssql,loss,0.9,4w4a,1,4,4,9"
    >>> read_terms(text)["loss"]["ssql"].terms
    {Bits(weight=4, act=4): LossTerms(quantization=1.0, contrastive=4.0, cross=4.0, total=9.0)}
    """
    terms_by_kind: dict[str, dict[str, TermsByBitWidth]] = {}
    for line in csv.DictReader(io.StringIO(text)):
        by_checkpoint = terms_by_kind.setdefault(line["features"], {})
        previous = by_checkpoint.get(line["checkpoint"])
        terms = LossTerms(**{name: float(line[name]) for name in TERMS})
        by_bit_width = {**(previous.terms if previous else {}), Bits.parse(line["bits"]): terms}
        by_checkpoint[line["checkpoint"]] = TermsByBitWidth(line["features"], float(line["spread"]), by_bit_width)
    return terms_by_kind


def _build_term_records(analyses: Sequence[Analysis]) -> Iterator[Record]:
    for each in analyses:
        for by_bits in each.terms:
            for bits, terms in by_bits.terms.items():
                columns = (each.name, each.method, by_bits.kind, by_bits.spread, each.pairs, str(bits))
                yield *columns, *vars(terms).values()


def _build_weight_records(analyses: Sequence[Analysis], bit_widths: Sequence[Bits]) -> Iterator[Record]:
    for each in analyses:
        for layer in each.layers:
            values = (layer.minimum, layer.maximum, layer.std, layer.kurtosis, layer.outliers, layer.farthest)
            errors = (layer.errors[bits] for bits in bit_widths)
            yield each.name, each.method, layer.layer, layer.count, *values, *errors


def _build_embedding_records(analyses: Sequence[Analysis]) -> Iterator[Record]:
    for each in analyses:
        embedding = each.embedding
        for bits, coordinates in embedding.coordinates.items():
            rows = zip(embedding.images, embedding.labels.tolist(), coordinates.tolist(), strict=True)
            for image, label, point in rows:
                yield each.name, str(bits), image, embedding.classes[label], *point
