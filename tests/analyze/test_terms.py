"""The three loss terms add up to the total distance, for any vectors."""

import dataclasses

import numpy as np
import pytest
import torch

from ssql_det.analyze.analysis import LossTerms, compute_terms


def random_vectors(count=3, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(40, 12, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_terms_add_up(dtype, tolerance, scale):
    result = compute_terms(*random_vectors(dtype=dtype, scale=scale))
    assert result.quantization + result.contrastive + result.cross == pytest.approx(result.total, rel=tolerance)


def test_each_term_equals_the_papers():
    quantized, full, target = random_vectors()
    quantized = full + quantized / 10
    q, f, t = (each.numpy() for each in (quantized, full, target))
    expected = LossTerms(
        quantization=np.mean(np.linalg.norm(q - f, axis=1) ** 2),
        contrastive=np.mean(np.linalg.norm(f - t, axis=1) ** 2),
        cross=2 * np.mean([(a - b) @ (b - c) for a, b, c in zip(q, f, t, strict=True)]),
        total=np.mean(np.linalg.norm(q - t, axis=1) ** 2),
    )
    assert dataclasses.astuple(compute_terms(quantized, full, target)) == pytest.approx(
        dataclasses.astuple(expected), rel=1e-12
    )


def test_without_quantization_only_the_contrastive_term_remains():
    full, target = random_vectors(2)
    result = compute_terms(full, full.clone(), target)
    assert (result.quantization, result.cross) == (0, 0)
    assert result.contrastive == result.total > 0
