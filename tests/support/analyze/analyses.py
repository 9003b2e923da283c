"""Analyses that were made up."""

import torch

from ssql_det.analyze.analysis import BACKBONE, LOSS, Analysis, Map, TermsAtBits, described, terms
from ssql_det.quant import Bits

WIDTHS = (Bits.FP, Bits(8, 8), Bits(2, 4))
CLASSES = tuple(f"class {number}" for number in range(12))


def an_analysis(name, method="SSQL", heads=True, seed=0, layers=("conv1", "layer1.0.conv1")):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    full, target, error = drawn(30, 8), drawn(30, 8), drawn(30, 8)
    at_bits = {bits: terms(full + share * error, full, target) for bits, share in zip(WIDTHS, (0, 0.1, 1), strict=True)}
    errors = {WIDTHS[1]: 0.01, WIDTHS[2]: 0.5 + seed / 10}
    places = {bits: drawn(24, 2) for bits in WIDTHS}
    return Analysis(
        name=name,
        file="checkpoint.pth",
        sha256=64 * f"{seed}",
        method=method,
        architecture="narrow_resnet",
        shown="crops, digits at 32 px",
        pairs=30,
        terms=tuple(TermsAtBits(features, 0.8, at_bits) for features in ((BACKBONE, LOSS) if heads else (BACKBONE,))),
        weights=tuple(described(layer, drawn(100), errors) for layer in layers),
        map=Map(places, tuple(f"{number}.png" for number in range(24)), torch.arange(24) % len(CLASSES), CLASSES),
    )
