"""t-SNE: deterministic, separates clusters, and takes few, equal or collapsed features."""

import math

import pytest
import torch

from ssql_det.analyze.tsne import tsne


def make_clusters(size=30, clusters=4, distance=8.0, width=10, seed=0):
    """Features in normal clusters, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = distance * torch.eye(clusters, width, dtype=torch.float64)
    features = centres.repeat_interleave(size, 0)
    features = features + torch.randn(features.shape, generator=generator, dtype=torch.float64)
    return features, torch.arange(clusters).repeat_interleave(size)


@pytest.mark.parametrize("seed", [0, 1])
def test_separate_clusters_stay_separate(seed):
    features, labels = make_clusters(seed=seed)
    points = tsne(features, seed=seed)
    distances = torch.cdist(points, points) + torch.diag(torch.full((120,), math.inf))
    assert bool((labels[distances.topk(10, largest=False).indices] == labels[:, None]).all())


def test_it_is_deterministic():
    features, _ = make_clusters(size=10)
    points = tsne(features, seed=3)
    assert points.shape == (40, 2)
    torch.manual_seed(1)
    assert torch.equal(tsne(features, seed=3), points)


@pytest.mark.parametrize("count", [4, 10])
def test_few_features_lower_the_perplexity(count):
    features = make_clusters(size=count // 2, clusters=2)[0]
    assert bool(tsne(features, perplexity=30.0).isfinite().all())


def test_equal_and_collapsed_features_get_finite_points():
    features, _ = make_clusters(size=20, clusters=2)
    assert bool(tsne(torch.cat([features, features])).isfinite().all())
    assert bool(tsne(torch.zeros(12, 5, dtype=torch.float64)).isfinite().all())


def test_features_that_are_not_finite_are_refused():
    features, _ = make_clusters(size=10)
    features[3, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        tsne(features)
