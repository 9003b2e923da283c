"""The parts of a pretraining that are functions: schedule, spread, neighbours, a linear layer on features."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from ssql_det.convert import IMAGENET
from ssql_det.core.errors import UserError
from ssql_det.pretrain.classifiers import knn, linear, spread
from ssql_det.pretrain.features import LabelledImages, features
from ssql_det.pretrain.optim import OptimConfig, learning_rate


def schedule(warmup_epochs=0.0, per_epoch=True):
    return OptimConfig("sgd", 256, 10, 0.5, 0.9, 1e-4, warmup_epochs, per_epoch)


def test_the_published_schedule_is_a_cosine_a_epoch():
    rates = [learning_rate(schedule(), step, 4) for step in range(40)]
    assert rates == [pytest.approx(0.25 * (1 + math.cos(math.pi * (step // 4) / 10))) for step in range(40)]


def test_in_steps_it_warms_up_and_falls_to_nothing():
    optim = schedule(warmup_epochs=2.0, per_epoch=False)
    rates = [learning_rate(optim, step, 5) for step in range(50)]
    assert rates[:10] == [pytest.approx(0.05 * (step + 1)) for step in range(10)]
    assert rates[10] == 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001
    assert learning_rate(optim, 30, 5) == pytest.approx(0.25)


@pytest.mark.parametrize("warm", [0.5, 1.5, 2.0])
def test_a_warm_up_never_goes_above_the_rate(warm):
    rates = [learning_rate(schedule(warmup_epochs=warm), step, 4) for step in range(40)]
    assert max(rates) == 0.5
    assert rates[0] == pytest.approx(0.5 / (4 * warm))


def test_spread_is_1_everywhere_and_0_in_one_place():
    everywhere = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert spread(everywhere) == pytest.approx(1, abs=0.02)
    assert spread(7 * everywhere) == pytest.approx(spread(everywhere))
    assert spread(torch.ones(16, 64)) == pytest.approx(0, abs=1e-6)
    half = everywhere.clone()
    half[:, 32:] = 0
    assert spread(half) == pytest.approx(0.5**0.5, abs=0.02)


def blobs(seed, count=300, classes=4, width=12, noise=1.5):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, width))
    labels = generator.integers(classes, size=count)
    points = centres[labels] + noise * generator.normal(size=(count, width))
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


def test_neighbours_vote_as_another_implementations_do():
    (seen, labels), (asked, truth) = blobs(0), blobs(1)

    def weights(distances):  # half the squared distance of normalized points is 1 less their cosine
        return np.exp((1 - distances**2 / 2) / 0.07)

    other = KNeighborsClassifier(20, weights=weights)
    other.fit(nn.functional.normalize(seen), labels)
    expected = 100 * other.score(nn.functional.normalize(asked), truth)
    assert knn(seen, labels, asked, truth) == pytest.approx(expected)
    assert 50 < expected < 95
    assert knn(seen, labels, seen, labels, neighbours=1) == 100


def test_a_linear_layer_is_as_good_as_another_implementations():
    (seen, labels), (asked, truth) = blobs(0, noise=1.0), blobs(1, noise=1.0)
    expected = 100 * LogisticRegression(C=100, max_iter=1000).fit(seen, labels).score(asked, truth)
    assert linear(seen, labels, asked, truth) == pytest.approx(expected, abs=3)
    assert linear(1000 * seen, labels, 1000 * asked, truth) == pytest.approx(linear(seen, labels, asked, truth), abs=1)
    assert linear(torch.zeros(300, 12), labels, torch.zeros(300, 12), truth) < 40  # nothing to see


def test_features_are_of_evaluation_mode_and_the_mode_comes_back():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten()).train()
    network[1].eval()
    images = LabelledImages("some", torch.randint(0, 256, (10, 3, 6, 6), dtype=torch.uint8), torch.arange(10))
    found = features(network, images.batches(IMAGENET, 4))
    assert [module.training for module in network] == [True, False, True, True]
    whole = features(network, images.batches(IMAGENET))
    assert found.shape == (10, 64)
    torch.testing.assert_close(found, whole)


def test_a_probe_needs_labels(tmp_path):
    from PIL import Image

    from ssql_det.pretrain.data import open_images
    from ssql_det.pretrain.features import labelled
    from ssql_det.ssl.augmentations import build_augmentation

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has no labels"):
        labelled(open_images(str(tmp_path)), build_augmentation("digits"))
