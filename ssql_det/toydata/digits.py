"""The digits: scikit-learn's 1,797 handwritten ones, 8x8, as smooth alphas of 80x80.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
(test part), CC BY 4.0; bundled with scikit-learn.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ssql_det.core.errors import UserError

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}
SIDE = 80

_STROKE_FROM, _STROKE_TO = 0.38, 0.62  # of the ink, where a stroke's soft edge begins and ends


@dataclass(frozen=True)
class Digits:
    """Alphas in [0, 1], shape [N, 80, 80] with an empty margin of 8; labels [N]; indices into the 1,797."""

    alphas: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@functools.cache
def digits(split: str) -> Digits:
    """The digits of one split; no two splits share one, whatever the seed of a data set.

    >>> digits("train").alphas.shape
    (1074, 80, 80)
    """
    if split not in SPLITS:
        raise UserError(f"there is no digit split {split!r}; choose one of {', '.join(SPLITS)}")
    alphas, labels = _all_digits()
    indices = _split_indices(labels)[split]
    return Digits(alphas[indices], labels[indices], indices)


@functools.cache
def _all_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    padded = np.pad(bundle.images / bundle.images.max(), ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    smooth = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for image in padded])
    alphas = np.clip((smooth - _STROKE_FROM) / (_STROKE_TO - _STROKE_FROM), 0, 1).astype(np.float32)
    return alphas, bundle.target.astype(np.int64)


def _split_indices(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The same shares of every class. The shuffle is fixed: test digits are test digits in every data set."""
    order = np.random.RandomState(0)
    parts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    bounds = np.cumsum(list(SPLITS.values()))[:-1]
    for label in range(len(CLASSES)):
        members = order.permutation(np.flatnonzero(labels == label))
        for split, part in zip(SPLITS, np.split(members, (bounds * len(members)).astype(int)), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(chosen)) for split, chosen in parts.items()}
