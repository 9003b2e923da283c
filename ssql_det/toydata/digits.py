"""Handwritten digits drawn onto backgrounds, and crops of one digit. Images are float RGB from 0 to 255.

The digits are the 1,797 of 8x8 pixels that come with scikit-learn, enlarged to smooth alpha masks of 80x80:
E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (test part),
CC BY 4.0.
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

_MIN_CONTRAST = 70.0  # between digit and background, in luma; with less, digits become illegible
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}
_ALPHA_SIZE = 80
_EDGE_START, _EDGE_END = 0.38, 0.62  # pixel values between which a stroke's soft edge lies


@functools.cache
def load_photographs() -> tuple[NDArray[np.uint8], ...]:
    """scikit-learn's two bundled photographs (china.jpg, flower.jpg; CC BY 2.0, see ``layouts.LICENCES``)."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def draw_background(rng: np.random.Generator, height: int, width: int, texture: float, whiten: float = 0.0) -> Image:
    """A mixture of a random colour (``texture`` 0) and a random crop of a photograph (1).

    ``whiten``, from 0 to 1, moves the colour towards white.
    """
    colour = ((1 - whiten) * rng.uniform(40, 215, 3) + whiten * 240).astype(np.float32)
    flat = np.broadcast_to(colour, (height, width, 3)).astype(np.float32)
    photo = load_photographs()[rng.integers(2)]
    zoom = max(rng.uniform(0.5, 1.5), height / photo.shape[0], width / photo.shape[1])
    crop_height, crop_width = min(int(height / zoom), photo.shape[0]), min(int(width / zoom), photo.shape[1])
    top, left = rng.integers(photo.shape[0] - crop_height + 1), rng.integers(photo.shape[1] - crop_width + 1)
    crop = photo[top : top + crop_height, left : left + crop_width]
    crop = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    return (1 - texture) * flat + texture * (0.6 * (crop - crop.mean((0, 1))) + crop.mean((0, 1)))


def warp_digit(
    alpha: Alpha, height: int, width: int, centre: tuple[float, float], size: float, degrees: float
) -> Alpha:
    """An alpha mask [height, width] of a digit, scaled to ``size`` pixels, rotated, and moved to ``centre`` (x, y)."""
    side = max(4, round(size))
    resized = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA if side < len(alpha) else cv2.INTER_CUBIC)
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, size / side)
    matrix[0, 2] += centre[0] - middle
    matrix[1, 2] += centre[1] - middle
    return np.clip(cv2.warpAffine(resized, matrix, (width, height), flags=cv2.INTER_LINEAR), 0, 1).astype(np.float32)


def choose_colour(
    rng: np.random.Generator, background: Image, alpha: Alpha, light_probability: float
) -> NDArray[np.float32]:
    """A random colour that contrasts with the background under the digit: dark, or light with ``light_probability``."""
    weight = alpha.sum()
    luma = float(((background @ _LUMA) * alpha).sum() / weight) if weight else 128.0
    is_light = rng.random() < light_probability
    colour = rng.uniform(150, 255, 3) if is_light else rng.uniform(0, 105, 3)
    difference = float(colour @ _LUMA) - luma
    if abs(difference) < _MIN_CONTRAST:  # a digit that turns from dark to light is better than an illegible one
        shift = (_MIN_CONTRAST if luma < 128 else -_MIN_CONTRAST) - difference
        colour = np.clip(colour + shift, 0, 255)
    return colour.astype(np.float32)


def blend(image: Image, alpha: Alpha, colour: NDArray[np.float32]) -> Image:
    """Draw the alpha mask onto the image in this colour."""
    return image + alpha[..., None] * (colour - image)


def add_noise(rng: np.random.Generator, image: Image, sigma: float) -> NDArray[np.uint8]:
    """Add Gaussian noise and round to uint8."""
    noisy = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def make_crop(rng: np.random.Generator, digits: Digits, size: int, difficulty: float) -> tuple[NDArray[np.uint8], int]:
    """An image [size, size, 3] of one digit, and its class, for pretraining and probes.

    At difficulty 0 the digit is large and dark on a flat colour; at 1 it is dark or light, of any size, rotated, noisy,
    and its background is a photograph.

    >>> image, label = make_crop(np.random.default_rng(0), load_digit_split("train"), 32, 0.5)
    >>> image.shape
    (32, 32, 3)
    """
    index = int(rng.integers(len(digits.labels)))
    side = size * rng.uniform(0.95 - 0.55 * difficulty, 0.95)
    margin = (size - side) / 2
    centre = (size - 1) / 2 + rng.uniform(-margin, margin, 2)
    background = draw_background(rng, size, size, texture=difficulty)
    degrees = rng.uniform(-25 * difficulty, 25 * difficulty)
    alpha = warp_digit(digits.alphas[index], size, size, tuple(centre), side, degrees)
    colour = choose_colour(rng, background, alpha, light_probability=min(0.5, difficulty))
    image = blend(background, alpha, colour)
    return add_noise(rng, image, sigma=12 * difficulty), int(digits.labels[index])


@dataclass(frozen=True)
class Digits:
    """Alpha masks [N, 80, 80] in [0, 1] with an empty margin of 8; labels [N]; indices [N] into all 1,797 digits."""

    alphas: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


@functools.cache
def load_digit_split(split: str) -> Digits:
    """The digits of one split. The splits are disjoint and the same for every seed and data set.

    >>> load_digit_split("train").alphas.shape
    (1074, 80, 80)
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r} of the digits; choose one of {', '.join(SPLITS)}")
    alphas, labels = _load_all_digits()
    indices = _split_indices(labels)[split]
    return Digits(alphas[indices], labels[indices], indices)


@functools.cache
def _load_all_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    dataset = load_digits()
    padded = np.pad(dataset.images / dataset.images.max(), ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    smooth = np.stack(
        [cv2.resize(image, (_ALPHA_SIZE, _ALPHA_SIZE), interpolation=cv2.INTER_CUBIC) for image in padded]
    )
    alphas = np.clip((smooth - _EDGE_START) / (_EDGE_END - _EDGE_START), 0, 1).astype(np.float32)
    return alphas, dataset.target.astype(np.int64)


def _split_indices(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The same fraction of every class in each split; the shuffle has a fixed seed."""
    rng = np.random.RandomState(0)
    parts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    bounds = np.cumsum(list(SPLITS.values()))[:-1]
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        for split, part in zip(SPLITS, np.split(members, (bounds * len(members)).astype(int)), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(chosen)) for split, chosen in parts.items()}
