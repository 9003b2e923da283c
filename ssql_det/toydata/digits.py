"""Digits onto backgrounds, and finished crops. Pure functions of a random generator; images are float RGB, 0 to 255.

The digits are scikit-learn's 1,797 handwritten ones, 8x8, as smooth alphas of 80x80: E. Alpaydin, C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository (test part), CC BY 4.0; bundled with scikit-learn.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ssql_det.core.errors import UserError

CROP_SIZES = (32, 64)
Image = NDArray[np.float32]  # [H, W, 3]
Alpha = NDArray[np.float32]  # [H, W], 0 to 1

_LEAST_CONTRAST = 70.0  # between ink and background, in luma: below it digits stop being legible
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}
SIDE = 80
_STROKE_FROM, _STROKE_TO = 0.38, 0.62  # of the ink, where a stroke's soft edge begins and ends


@functools.cache
def photographs() -> tuple[NDArray[np.uint8], ...]:
    """scikit-learn's two bundled photographs (china.jpg, flower.jpg; CC BY 2.0, see ``layouts.LICENCES``)."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def background(rng: np.random.Generator, height: int, width: int, texture: float, lift: float = 0.0) -> Image:
    """A flat colour that turns, as ``texture`` goes from 0 to 1, into a crop of a photograph; ``lift`` lightens it."""
    colour = ((1 - lift) * rng.uniform(40, 215, 3) + lift * 240).astype(np.float32)
    flat = np.broadcast_to(colour, (height, width, 3)).astype(np.float32)
    photo = photographs()[rng.integers(2)]
    zoom = max(rng.uniform(0.5, 1.5), height / photo.shape[0], width / photo.shape[1])
    tall, wide = min(int(height / zoom), photo.shape[0]), min(int(width / zoom), photo.shape[1])
    top, left = rng.integers(photo.shape[0] - tall + 1), rng.integers(photo.shape[1] - wide + 1)
    crop = cv2.resize(photo[top : top + tall, left : left + wide], (width, height), interpolation=cv2.INTER_AREA)
    crop = crop.astype(np.float32)
    return (1 - texture) * flat + texture * (0.6 * (crop - crop.mean((0, 1))) + crop.mean((0, 1)))


def place(alpha: Alpha, height: int, width: int, centre: tuple[float, float], size: float, degrees: float) -> Alpha:
    """The digit on an empty canvas: its middle at ``centre`` (x, y), its side ``size`` pixels, turned."""
    side = max(4, round(size))
    small = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA if side < len(alpha) else cv2.INTER_CUBIC)
    middle = (side - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), degrees, size / side)
    turn[0, 2] += centre[0] - middle
    turn[1, 2] += centre[1] - middle
    return np.clip(cv2.warpAffine(small, turn, (width, height), flags=cv2.INTER_LINEAR), 0, 1).astype(np.float32)


def ink(rng: np.random.Generator, behind: Image, where: Alpha, inverted: float) -> NDArray[np.float32]:
    """A colour that stands out from what lies behind: dark, or with probability ``inverted`` light."""
    weight = where.sum()
    luma = float(((behind @ _LUMA) * where).sum() / weight) if weight else 128.0
    light = rng.random() < inverted
    colour = rng.uniform(150, 255, 3) if light else rng.uniform(0, 105, 3)
    difference = float(colour @ _LUMA) - luma
    if abs(difference) < _LEAST_CONTRAST:  # rather the other polarity than an illegible digit
        shift = (_LEAST_CONTRAST if luma < 128 else -_LEAST_CONTRAST) - difference
        colour = np.clip(colour + shift, 0, 255)
    return colour.astype(np.float32)


def paint(image: Image, where: Alpha, colour: NDArray[np.float32]) -> Image:
    """The image with the colour laid over it."""
    return image + where[..., None] * (colour - image)


def add_noise(rng: np.random.Generator, image: Image, sigma: float) -> NDArray[np.uint8]:
    """A finished image: Gaussian noise, then whole numbers."""
    noisy = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def make_crop(rng: np.random.Generator, source: Digits, size: int, difficulty: float) -> tuple[NDArray[np.uint8], int]:
    """One crop [size, size, 3] of one digit, and its class: for probes, and for pretraining from files.

    At a difficulty of 0 it is large and dark on a flat colour, at 1 in either polarity on the texture of a photograph,
    of any size, turned and noisy.

    >>> image, label = make_crop(np.random.default_rng(0), load_digit_split("train"), 32, 0.5)
    """
    index = int(rng.integers(len(source.labels)))
    side = size * rng.uniform(0.95 - 0.55 * difficulty, 0.95)
    room = (size - side) / 2
    centre = (size - 1) / 2 + rng.uniform(-room, room, 2)
    behind = background(rng, size, size, texture=difficulty)
    degrees = rng.uniform(-25 * difficulty, 25 * difficulty)
    where = place(source.alphas[index], size, size, tuple(centre), side, degrees)
    image = paint(behind, where, ink(rng, behind, where, inverted=min(0.5, difficulty)))
    return add_noise(rng, image, sigma=12 * difficulty), int(source.labels[index])


@dataclass(frozen=True)
class Digits:
    """Alphas in [0, 1], shape [N, 80, 80] with an empty margin of 8; labels [N]; indices into the 1,797."""

    alphas: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@functools.cache
def load_digit_split(split: str) -> Digits:
    """The digits of one split; no two splits share one, whatever the seed of a data set.

    >>> load_digit_split("train").alphas.shape
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
