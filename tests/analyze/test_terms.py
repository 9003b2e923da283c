"""The three terms add up to what is measured, whatever the vectors are."""

import dataclasses

import numpy as np
import pytest
import torch

from ssql_det.analyze.analysis import Terms, terms


def vectors(count=3, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(40, 12, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_they_add_up(dtype, exact, scale):
    found = terms(*vectors(dtype=dtype, scale=scale))
    assert found.quantization + found.contrastive + found.cross == pytest.approx(found.total, rel=exact)


def test_each_is_what_the_paper_writes():
    low, full, target = vectors()
    low = full + low / 10
    q, f, t = (each.numpy() for each in (low, full, target))
    expected = Terms(
        quantization=np.mean(np.linalg.norm(q - f, axis=1) ** 2),
        contrastive=np.mean(np.linalg.norm(f - t, axis=1) ** 2),
        cross=2 * np.mean([(a - b) @ (b - c) for a, b, c in zip(q, f, t, strict=True)]),
        total=np.mean(np.linalg.norm(q - t, axis=1) ** 2),
    )
    assert dataclasses.astuple(terms(low, full, target)) == pytest.approx(dataclasses.astuple(expected), rel=1e-12)


def test_what_is_not_quantized_has_the_contrastive_term_alone():
    full, target = vectors(2)
    found = terms(full, full.clone(), target)
    assert (found.quantization, found.cross) == (0, 0)
    assert found.contrastive == found.total > 0
