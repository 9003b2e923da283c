"""Contrastive losses against sums over pairs, one by one, in Python's own numbers."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ssql_det.ssl.losses import info_nce, negative_cosine, nt_xent, unit_length


def unit(count, seed, dtype=torch.float64):
    return normalize(torch.randn(count, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(
        dtype
    )


def product(one, other):
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))


def places(count):
    """Of anchors that are the candidates themselves: first views, then second."""
    first = torch.arange(count)
    return torch.cat([first, first + count]), torch.cat([first + count, first])


def info_nce_pair_by_pair(queries, keys, negatives, temperature):
    total = 0
    for query, key in zip(queries, keys, strict=True):
        right = math.exp(product(query, key) / temperature)
        wrong = sum(math.exp(product(query, negative) / temperature) for negative in negatives)
        total -= math.log(right / (right + wrong))
    return total / len(queries)


def nt_xent_pair_by_pair(anchors, candidates, own, partner, temperature):
    total = 0
    for anchor, itself, right in zip(anchors, own.tolist(), partner.tolist(), strict=True):
        likeness = [math.exp(product(anchor, candidate) / temperature) for candidate in candidates]
        total -= math.log(likeness[right] / sum(each for place, each in enumerate(likeness) if place != itself))
    return total / len(anchors)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("negatives", [0, 1, 9])
def test_info_nce_is_the_sum_over_pairs(temperature, negatives):
    given = unit(5, 0), unit(5, 1), unit(negatives, 2), temperature
    assert info_nce(*given).item() == pytest.approx(info_nce_pair_by_pair(*given), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_nt_xent_is_the_sum_over_pairs(temperature):
    candidates = unit(10, 0)
    given = candidates, candidates, *places(5), temperature
    assert nt_xent(*given).item() == pytest.approx(nt_xent_pair_by_pair(*given), rel=1e-12)
    # Anchors of one process among the candidates of two.
    own, partner = (each[[2, 3, 7, 8]] for each in places(5))
    given = unit(4, 3), candidates, own, partner, temperature
    assert nt_xent(*given).item() == pytest.approx(nt_xent_pair_by_pair(*given), rel=1e-12)


def test_the_views_may_be_swapped_and_images_may_change_places():
    first, second, order = unit(6, 0), unit(6, 1), torch.randperm(6, generator=torch.Generator().manual_seed(2))

    def loss(one, other):
        features = torch.cat([one, other])
        return nt_xent(features, features, *places(6), 0.5).item()

    assert loss(second, first) == pytest.approx(loss(first, second), rel=1e-12)
    assert loss(first[order], second[order]) == pytest.approx(loss(first, second), rel=1e-12)
    assert loss(first[order], second) != pytest.approx(loss(first, second), rel=1e-3)


def test_the_order_of_negatives_does_not_matter_and_that_of_keys_does():
    queries, keys, negatives = unit(6, 0), unit(6, 1), unit(9, 2)
    expected = info_nce(queries, keys, negatives, 0.2).item()
    assert info_nce(queries.flip(0), keys.flip(0), negatives.flip(0), 0.2).item() == pytest.approx(expected, rel=1e-12)
    assert info_nce(queries, keys.flip(0), negatives, 0.2).item() != pytest.approx(expected, rel=1e-3)


def test_a_low_temperature_does_not_overflow():
    features = unit(6, 0).requires_grad_()
    for loss in (nt_xent(features, features, *places(3), 1e-4), info_nce(features, features.flip(0), features, 1e-4)):
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss.isfinite()
        assert gradient.isfinite().all()


LOSSES = {
    "cosine": lambda dtype: negative_cosine(unit(64, 0, dtype), unit(64, 1, dtype)),
    "info_nce": lambda dtype: info_nce(unit(64, 0, dtype), unit(64, 1, dtype), unit(99, 2, dtype), 0.07),
    "nt_xent": lambda dtype: nt_xent(unit(64, 0, dtype), unit(64, 0, dtype), *places(32), 0.07),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_is_computed_in_float32_and_float64_stays(loss):
    """The features are rounded, the loss is not."""
    assert loss(torch.float64).dtype == torch.float64
    for half in (torch.bfloat16, torch.float16):
        assert loss(half).dtype == torch.float32
        assert loss(half).item() == pytest.approx(loss(torch.float64).item(), rel=5e-3)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_autocast_rounds_nothing(loss):
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(torch.float32)
    assert found == loss(torch.float32)


def test_a_unit_length_is_one_in_float32_of_half_precision_as_well():
    features = 100 * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        found = unit_length(features.to(dtype))
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5, dtype=found.dtype))
        torch.testing.assert_close(found, normalize(features.to(dtype).to(found.dtype), dim=1))
    assert torch.equal(unit_length(torch.zeros(1, 3)), torch.zeros(1, 3))
