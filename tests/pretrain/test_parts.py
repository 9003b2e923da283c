"""Functions of pretraining and probes: learning rate, spread, kNN and linear accuracy, features."""

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
from ssql_det.pretrain.classifiers import knn_accuracy, linear_accuracy
from ssql_det.pretrain.features import LabelledImages, compute_spread, extract_features
from ssql_det.pretrain.optim import OptimConfig, learning_rate


def schedule(warmup_epochs=0.0, per_epoch=True):
    return OptimConfig("sgd", 256, 10, 0.5, 0.9, 1e-4, warmup_epochs, per_epoch)


def test_the_published_schedule_is_a_cosine_updated_each_epoch():
    rates = [learning_rate(schedule(), step, 4) for step in range(40)]
    assert rates == [pytest.approx(0.25 * (1 + math.cos(math.pi * (step // 4) / 10))) for step in range(40)]


def test_a_schedule_in_steps_warms_up_and_falls_to_zero():
    optim = schedule(warmup_epochs=2.0, per_epoch=False)
    rates = [learning_rate(optim, step, 5) for step in range(50)]
    assert rates[:10] == [pytest.approx(0.05 * (step + 1)) for step in range(10)]
    assert rates[10] == 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001
    assert learning_rate(optim, 30, 5) == pytest.approx(0.25)


@pytest.mark.parametrize("warm", [0.5, 1.5, 2.0])
def test_warm_up_never_exceeds_the_base_rate(warm):
    rates = [learning_rate(schedule(warmup_epochs=warm), step, 4) for step in range(40)]
    assert max(rates) == 0.5
    assert rates[0] == pytest.approx(0.5 / (4 * warm))


def test_spread_is_1_in_all_directions_and_0_after_collapse():
    uniform = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert compute_spread(uniform) == pytest.approx(1, abs=0.02)
    assert compute_spread(7 * uniform) == pytest.approx(compute_spread(uniform))
    assert compute_spread(torch.ones(16, 64)) == pytest.approx(0, abs=1e-6)
    half = uniform.clone()
    half[:, 32:] = 0
    assert compute_spread(half) == pytest.approx(0.5**0.5, abs=0.02)


def make_clusters(seed, count=300, classes=4, width=12, noise=1.5):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, width))
    labels = generator.integers(classes, size=count)
    points = centres[labels] + noise * generator.normal(size=(count, width))
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


def test_knn_equals_sklearns():
    (gallery, labels), (query, query_labels) = make_clusters(0), make_clusters(1)

    def weights(distances):  # of normalized points: distance**2 / 2 = 1 - cosine
        return np.exp((1 - distances**2 / 2) / 0.07)

    other = KNeighborsClassifier(20, weights=weights)
    other.fit(nn.functional.normalize(gallery), labels)
    expected = 100 * other.score(nn.functional.normalize(query), query_labels)
    assert knn_accuracy(gallery, labels, query, query_labels) == pytest.approx(expected)
    assert 50 < expected < 95
    assert knn_accuracy(gallery, labels, gallery, labels, k=1) == 100


def test_a_linear_layer_is_as_good_as_logistic_regression():
    (gallery, labels), (query, query_labels) = make_clusters(0, noise=1.0), make_clusters(1, noise=1.0)
    expected = 100 * LogisticRegression(C=100, max_iter=1000).fit(gallery, labels).score(query, query_labels)
    assert linear_accuracy(gallery, labels, query, query_labels) == pytest.approx(expected, abs=3)
    assert linear_accuracy(1000 * gallery, labels, 1000 * query, query_labels) == pytest.approx(
        linear_accuracy(gallery, labels, query, query_labels), abs=1
    )
    assert linear_accuracy(torch.zeros(300, 12), labels, torch.zeros(300, 12), query_labels) < 40  # no information


def test_features_are_extracted_in_evaluation_mode_which_is_restored():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten()).train()
    network[1].eval()
    images = LabelledImages("some", torch.randint(0, 256, (10, 3, 6, 6), dtype=torch.uint8), torch.arange(10))
    found = extract_features(network, images.batches(IMAGENET, 4))
    assert [module.training for module in network] == [True, False, True, True]
    whole = extract_features(network, images.batches(IMAGENET))
    assert found.shape == (10, 64)
    torch.testing.assert_close(found, whole)


def test_a_probe_needs_labels(tmp_path):
    from PIL import Image

    from ssql_det.pretrain.data import open_images
    from ssql_det.pretrain.features import load_labelled_images
    from ssql_det.ssl.augmentations import build_augmentation

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has no labels"):
        load_labelled_images(open_images(str(tmp_path)), build_augmentation("digits"))
