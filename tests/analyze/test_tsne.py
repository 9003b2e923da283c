"""t-SNE against another implementation, and by what is true of any."""

import math

import pytest
import torch
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE
from sklearn.manifold._t_sne import _joint_probabilities

from ssql_det.analyze.tsne import conditional_probabilities, joint_probabilities, kl_gradient, squared_distances, tsne


def blobs(each=30, groups=4, apart=8.0, width=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = apart * torch.eye(groups, width, dtype=torch.float64)
    points = centres.repeat_interleave(each, 0)
    return points + torch.randn(points.shape, generator=generator, dtype=torch.float64), torch.arange(
        groups
    ).repeat_interleave(each)


def divergence(joint, place):
    """``KL(P, Q)`` of a map, of pairs of two points."""
    pairs = ~torch.eye(len(place), dtype=torch.bool)
    near, nearness = joint[pairs], 1 / (1 + squared_distances(place)[pairs])
    return (torch.xlogy(near, near) - torch.xlogy(near, nearness / nearness.sum())).sum()


@pytest.mark.parametrize("perplexity", [2.0, 10.0, 35.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rows_have_the_perplexity_that_was_asked_for(perplexity, scale):
    points, _ = blobs()
    rows = conditional_probabilities(squared_distances(scale * points), perplexity)
    assert torch.equal(rows.diagonal(), torch.zeros(120, dtype=torch.float64))
    torch.testing.assert_close(rows.sum(1), torch.ones(120, dtype=torch.float64))
    entropy = -torch.xlogy(rows, rows).sum(1)
    torch.testing.assert_close(entropy.exp(), torch.full_like(entropy, perplexity), rtol=1e-5, atol=0)


def test_joint_probabilities_are_another_implementations():
    points, _ = blobs()
    squares = squared_distances(points)
    found = joint_probabilities(squares, 20.0)
    torch.testing.assert_close(found, found.T)
    assert float(found.sum()) == pytest.approx(1)
    theirs = squareform(_joint_probabilities(squares.float().numpy(), 20.0, 0))
    torch.testing.assert_close(found, torch.tensor(theirs), atol=1e-8, rtol=1e-3)


def test_distances_are_those_between_pairs():
    points, _ = blobs()
    torch.testing.assert_close(squared_distances(points), torch.cdist(points, points).square())


def test_the_gradient_is_that_of_the_divergence():
    points, _ = blobs(each=10)
    joint = joint_probabilities(squared_distances(points), 8.0)
    place = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    divergence(joint, place).backward()
    torch.testing.assert_close(kl_gradient(joint, place.detach()), place.grad, rtol=1e-9, atol=1e-15)


def test_the_divergence_falls_as_far_as_another_implementations():
    points, _ = blobs()
    joint = joint_probabilities(squared_distances(points), 30.0)
    start, *falling = [float(divergence(joint, tsne(points, steps=steps))) for steps in (0, 260, 300, 400, 750)]
    assert falling == sorted(falling, reverse=True)  # once what is near is no longer exaggerated
    assert falling[-1] < start / 10
    other = TSNE(method="exact", init="pca", random_state=0).fit(points.numpy())
    assert falling[-1] < 1.1 * other.kl_divergence_


@pytest.mark.parametrize("seed", [0, 1])
def test_separate_blobs_stay_separate(seed):
    points, labels = blobs(seed=seed)
    place = tsne(points, seed=seed)
    distances = torch.cdist(place, place) + torch.diag(torch.full((120,), math.inf, dtype=torch.float64))
    assert bool((labels[distances.topk(10, largest=False).indices] == labels[:, None]).all())


def test_a_seed_gives_one_map():
    points, _ = blobs(each=10)
    assert torch.equal(tsne(points, seed=3), tsne(points, seed=3))
    assert not torch.equal(tsne(points, seed=3), tsne(points, seed=4))
    place = tsne(points.float())
    assert (place.dtype, place.shape) == (torch.float32, (40, 2))
    torch.testing.assert_close(place.mean(0), torch.zeros(2), atol=1e-4, rtol=0)


def test_points_that_are_equal_get_places():
    points, _ = blobs(each=20, groups=2)
    assert bool(tsne(torch.cat([points, points]), steps=300).isfinite().all())
    assert bool(tsne(torch.zeros(12, 5, dtype=torch.float64), steps=300).isfinite().all())


def test_few_points_are_mapped_too():
    assert bool(tsne(blobs(each=5, groups=2)[0], perplexity=30.0).isfinite().all())
