"""Analyses of random features and weights."""

import torch

from ssql_det.analyze.analysis import (
    BACKBONE,
    LOSS,
    Analysis,
    Embedding,
    TermsByBitWidth,
    compute_terms,
    measure_weight,
)
from ssql_det.quant import Bits

WIDTHS = (Bits.FP, Bits(8, 8), Bits(2, 4))
CLASSES = tuple(f"class {number}" for number in range(12))


def make_analysis(name, method="SSQL", heads=True, seed=0, layers=("conv1", "layer1.0.conv1")):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    full, target, error = draw(30, 8), draw(30, 8), draw(30, 8)
    by_width = {
        bits: compute_terms(full + fraction * error, full, target)
        for bits, fraction in zip(WIDTHS, (0, 0.1, 1), strict=True)
    }
    errors = {WIDTHS[1]: 0.01, WIDTHS[2]: 0.5 + seed / 10}
    points = {bits: draw(24, 2) for bits in WIDTHS}
    return Analysis(
        name=name,
        file="checkpoint.pth",
        sha256=64 * f"{seed}",
        method=method,
        architecture="narrow_resnet",
        protocol="crops, digits at 32 px",
        pairs=30,
        terms=tuple(
            TermsByBitWidth(features, 0.8, by_width) for features in ((BACKBONE, LOSS) if heads else (BACKBONE,))
        ),
        layers=tuple(measure_weight(layer, draw(100), errors) for layer in layers),
        embedding=Embedding(
            points, tuple(f"{number}.png" for number in range(24)), torch.arange(24) % len(CLASSES), CLASSES
        ),
    )
