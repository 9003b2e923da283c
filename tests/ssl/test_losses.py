"""Contrastive losses against sums over pairs, one by one, in Python's own numbers."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from ssql_det.ssl.losses import info_nce, l2_normalize, negative_cosine, nt_xent


def random_features(count, seed, dtype=torch.float64):
    """Of unit length, [count, 7]."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 7, dtype=torch.float64, generator=generator)).to(dtype)


def inner_product(one, other):
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))


def self_and_positive_index(count):
    """Where the anchors are the candidates themselves: first views, then second."""
    first = torch.arange(count)
    return torch.cat([first, first + count]), torch.cat([first + count, first])


def info_nce_pair_by_pair(queries, keys, negatives, temperature):
    total = 0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(inner_product(query, key) / temperature)
        negative = sum(math.exp(inner_product(query, each) / temperature) for each in negatives)
        total -= math.log(positive / (positive + negative))
    return total / len(queries)


def nt_xent_pair_by_pair(anchors, candidates, self_index, positive_index, temperature):
    total = 0
    for anchor, own, positive in zip(anchors, self_index.tolist(), positive_index.tolist(), strict=True):
        similarities = [math.exp(inner_product(anchor, candidate) / temperature) for candidate in candidates]
        others = sum(each for index, each in enumerate(similarities) if index != own)
        total -= math.log(similarities[positive] / others)
    return total / len(anchors)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("negatives", [0, 1, 9])
def test_info_nce_is_the_sum_over_pairs(temperature, negatives):
    arguments = random_features(5, 0), random_features(5, 1), random_features(negatives, 2), temperature
    assert info_nce(*arguments).item() == pytest.approx(info_nce_pair_by_pair(*arguments), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_nt_xent_is_the_sum_over_pairs(temperature):
    candidates = random_features(10, 0)
    arguments = candidates, candidates, *self_and_positive_index(5), temperature
    assert nt_xent(*arguments).item() == pytest.approx(nt_xent_pair_by_pair(*arguments), rel=1e-12)
    # Anchors of one process among the candidates of two.
    self_index, positive_index = (index[[2, 3, 7, 8]] for index in self_and_positive_index(5))
    arguments = random_features(4, 3), candidates, self_index, positive_index, temperature
    assert nt_xent(*arguments).item() == pytest.approx(nt_xent_pair_by_pair(*arguments), rel=1e-12)


def test_nt_xent_does_not_depend_on_the_order_of_views_or_images():
    first, second, order = (
        random_features(6, 0),
        random_features(6, 1),
        torch.randperm(6, generator=torch.Generator().manual_seed(2)),
    )

    def loss(one, other):
        features = torch.cat([one, other])
        return nt_xent(features, features, *self_and_positive_index(6), 0.5).item()

    assert loss(second, first) == pytest.approx(loss(first, second), rel=1e-12)
    assert loss(first[order], second[order]) == pytest.approx(loss(first, second), rel=1e-12)
    assert loss(first[order], second) != pytest.approx(loss(first, second), rel=1e-3)


def test_info_nce_depends_on_the_order_of_keys_but_not_of_negatives():
    queries, keys, negatives = random_features(6, 0), random_features(6, 1), random_features(9, 2)
    expected = info_nce(queries, keys, negatives, 0.2).item()
    assert info_nce(queries.flip(0), keys.flip(0), negatives.flip(0), 0.2).item() == pytest.approx(expected, rel=1e-12)
    assert info_nce(queries, keys.flip(0), negatives, 0.2).item() != pytest.approx(expected, rel=1e-3)


def test_a_low_temperature_does_not_overflow():
    features = random_features(6, 0).requires_grad_()
    for loss in (
        nt_xent(features, features, *self_and_positive_index(3), 1e-4),
        info_nce(features, features.flip(0), features, 1e-4),
    ):
        (gradient,) = torch.autograd.grad(loss, features)
        assert loss.isfinite()
        assert gradient.isfinite().all()


LOSSES = {
    "cosine": lambda dtype: negative_cosine(random_features(64, 0, dtype), random_features(64, 1, dtype)),
    "info_nce": lambda dtype: info_nce(
        random_features(64, 0, dtype), random_features(64, 1, dtype), random_features(99, 2, dtype), 0.07
    ),
    "nt_xent": lambda dtype: nt_xent(
        random_features(64, 0, dtype), random_features(64, 0, dtype), *self_and_positive_index(32), 0.07
    ),
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
        result = loss(torch.float32)
    assert result == loss(torch.float32)


def test_l2_normalize_computes_in_float32_or_better():
    features = 100 * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        result = l2_normalize(features.to(dtype))
        assert result.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(result.norm(dim=1), torch.ones(5, dtype=result.dtype))
        torch.testing.assert_close(result, normalize(features.to(dtype).to(result.dtype), dim=1))
    assert torch.equal(l2_normalize(torch.zeros(1, 3)), torch.zeros(1, 3))
