"""The digits: scikit-learn's, complete, in disjoint splits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ssql_det.core.errors import UserError
from ssql_det.toydata.digits import CLASSES, SPLITS, load_digit_split


def test_splits_are_disjoint_and_complete():
    indices = np.concatenate([load_digit_split(split).indices for split in SPLITS])
    assert sorted(indices) == list(range(1797))


def test_every_split_has_the_same_fraction_of_each_class():
    for split, fraction in SPLITS.items():
        counts = np.bincount(load_digit_split(split).labels, minlength=len(CLASSES))
        assert (abs(counts - fraction * 179.7) < 5).all()


def test_labels_and_images_are_scikit_learns():
    source = load_digits()
    train = load_digit_split("train")
    assert (train.labels == source.target[train.indices]).all()
    shrunk = train.alphas.reshape(-1, 10, 8, 10, 8).mean((2, 4))[:, 1:-1, 1:-1]
    correlation = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(shrunk, source.images[train.indices], strict=True)
    ]
    assert np.median(correlation) > 0.9


def test_alphas_have_an_empty_border():
    alphas = load_digit_split("val").alphas
    assert 0 <= alphas.min() < alphas.max() == 1
    assert not alphas[:, [0, -1]].any()
    assert not alphas[:, :, [0, -1]].any()


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match="unknown split 'dev' of the digits; choose one of train, val, test"):
        load_digit_split("dev")
