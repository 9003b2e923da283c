"""Predict the loss of a whole assignment from the losses of its parts, and learn from the wholes that are measured.

The loss of an assignment is taken as the sum of a loss for each group's choice, whose first estimates are the losses of
the groups alone, all times one factor. They are uncertain: they were measured on some images, and losses do not add up.
So each measured whole corrects the estimates of its choices, by Bayes' rule for a linear model with normal errors (a
step of a Kalman filter): those that are the most uncertain take most of the difference.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssql_det.ptq.assignment import Assignment
from ssql_det.quant.pairwise import PairwiseCost

NOISE = 0.3  # standard deviation of a measured loss, in AP: of some hundred images
_RELATIVE = 0.5  # further deviation of a group's loss, as a part of the loss


class LossPrediction:
    """The estimated loss of each group's choice, and a constant that any assignment loses or, if negative, gains.

    >>> prediction = LossPrediction([[0.0, 2.0], [0.0, 2.0]])
    >>> prediction.cost([1, 1])
    4.0
    >>> prediction.learn([1, 1], 3.0)
    >>> round(prediction.cost([1, 1]), 2), round(prediction.cost([1, 0]), 2)
    (3.04, 1.52)
    """

    def __init__(self, losses: Sequence[Sequence[float]], constant: float = 0.0) -> None:
        self._constant = constant
        self._sizes = [len(each) for each in losses]
        self._starts = [0, *itertools.accumulate(self._sizes)]
        self._mean: NDArray[np.float64] = np.array([loss for each in losses for loss in each], dtype=float)
        self._covariance: NDArray[np.float64] = np.diag(NOISE**2 + (_RELATIVE * self._mean) ** 2)

    @property
    def cost(self) -> PairwiseCost:
        """The predicted loss of an assignment; no choice gains."""
        parts = zip(self._starts, self._sizes, strict=False)
        singles = [np.maximum(self._mean[start : start + size], 0).tolist() for start, size in parts]
        return PairwiseCost(self._constant, singles)

    def learn(self, assignment: Assignment | Sequence[int], loss: float) -> None:
        """Correct the estimates by the measured loss of a whole assignment."""
        chosen = np.zeros(len(self._mean))
        chosen[[start + choice for start, choice in zip(self._starts, assignment, strict=False)]] = 1
        shared = self._covariance @ chosen
        variance = chosen @ shared + NOISE**2
        self._mean = self._mean + shared * (loss - self._constant - chosen @ self._mean) / variance
        self._covariance = self._covariance - np.outer(shared, shared) / variance


def fit_factor(sums: Sequence[float], losses: Sequence[float]) -> float:
    """How many times the sum of the losses of the groups alone the loss of the whole is, over some wholes.

    >>> fit_factor([4.0, 12.0], [3.0, 9.0]), fit_factor([1.0], [-0.1])
    (0.75, 1.0)
    """
    return sum(losses) / sum(sums) if min(sum(losses), sum(sums)) > 0 else 1.0
