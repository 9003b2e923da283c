"""Predicted losses: smoothed, and corrected by measured wholes as Bayes' rule says."""

import itertools
import random

import numpy as np
import pytest

from ssql_det.ptq.prediction import NOISE, LossPrediction, fit_factor
from ssql_det.ptq.smoothing import smooth_losses
from ssql_det.quant import Bits

WIDTHS = [Bits(8, 8), Bits(6, 6), Bits(5, 5), Bits(4, 4), Bits(3, 3)]


def test_what_is_learned_is_the_posterior_mean_of_a_linear_model():
    """In closed form from all wholes at once, in any order."""
    losses = [[0.5, 2.0], [1.0, 3.0, 6.0]]
    wholes = [((1, 2), 7.0), ((0, 1), 4.2), ((1, 1), 4.0)]
    mean = np.array([loss for each in losses for loss in each])
    prior = np.diag(NOISE**2 + (0.5 * mean) ** 2)
    chosen = np.array([[picked[0] == 0, picked[0] == 1, *(picked[1] == c for c in range(3))] for picked, _ in wholes])
    chosen = chosen.astype(float)
    residual = np.array([loss for _, loss in wholes]) - 0.25 - chosen @ mean
    gain = prior @ chosen.T @ np.linalg.inv(chosen @ prior @ chosen.T + NOISE**2 * np.eye(3))
    expected = mean + gain @ residual
    for order in itertools.permutations(wholes):
        prediction = LossPrediction(losses, constant=0.25)
        for picked, loss in order:
            prediction.learn(picked, loss)
        cost = prediction.cost
        assert cost.constant == 0.25
        assert [loss for each in cost.singles for loss in each] == pytest.approx(expected.clip(min=0), abs=1e-9)


def test_losses_that_fall_stay_and_others_are_made_to_fall():
    falling = [0.01, 0.1, 0.4, 1.5, 6.0]
    assert smooth_losses(WIDTHS, falling) == pytest.approx(falling)
    order = [3, 0, 4, 2, 1]
    shuffled = smooth_losses([WIDTHS[index] for index in order], [falling[index] for index in order])
    assert shuffled == pytest.approx([falling[index] for index in order])
    generator = random.Random(0)
    for _ in range(100):
        smooth = smooth_losses(WIDTHS, [generator.gauss(0, 1) + 4 / 2**index for index in range(5, 0, -1)])
        assert all(0 <= finer <= coarser for finer, coarser in itertools.pairwise(smooth))
        assert smooth[-1] == 0 or min(smooth) > 0


def test_bit_widths_of_which_none_is_finer_are_not_compared():
    """2w8a and 8w2a; 8w8a is finer than both."""
    choices = [Bits(2, 8), Bits(8, 2), Bits(8, 8)]
    assert smooth_losses(choices, [5.0, 1.0, 0.5]) == [5.0, 1.0, 0.5]
    assert smooth_losses(choices, [5.0, 1.0, 2.0]) == [5.0, 1.5, 1.5]
    assert smooth_losses([Bits(None, 4), Bits(4, 4)], [1.0, 0.0]) == [0.5, 0.5]


def test_the_factor_is_that_of_the_sums():
    assert fit_factor([2.0, 8.0], [1.0, 3.0]) == 0.4
    assert fit_factor([0.0], [3.0]) == fit_factor([3.0], [0.0]) == 1.0
