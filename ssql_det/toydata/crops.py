"""Finished crops of one digit each, labelled: for probes, and for pretraining from files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssql_det.core.errors import UserError
from ssql_det.toydata.compose import add_noise, background, ink, paint, place
from ssql_det.toydata.digits import Digits

SIZES = (32, 64)


@dataclass(frozen=True)
class Dial:
    """How hard crops are, from 0 (flat, dark on light or light on dark as drawn, large) to 1 (photo texture,
    either polarity, any scale, turned, noisy).

    >>> Dial(0.0).sizes
    (0.95, 0.95)
    """

    difficulty: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.difficulty <= 1:
            raise UserError(f"difficulty goes from 0 to 1, got {self.difficulty}")

    @property
    def texture(self) -> float:
        return self.difficulty

    @property
    def inverted(self) -> float:
        """The probability of light ink."""
        return min(0.5, self.difficulty)

    @property
    def sizes(self) -> tuple[float, float]:
        """The least and the greatest side of a digit, as shares of the crop's."""
        return 0.95 - 0.55 * self.difficulty, 0.95

    @property
    def degrees(self) -> float:
        return 25 * self.difficulty

    @property
    def noise(self) -> float:
        return 12 * self.difficulty


def make_crop(rng: np.random.Generator, source: Digits, size: int, dial: Dial) -> tuple[NDArray[np.uint8], int]:
    """One crop [size, size, 3] and its class.

    >>> image, label = make_crop(np.random.default_rng(0), digits("train"), 32, Dial(0.5))
    """
    index = int(rng.integers(len(source.labels)))
    side = size * rng.uniform(*dial.sizes)
    room = (size - side) / 2
    centre = (size - 1) / 2 + rng.uniform(-room, room, 2)
    behind = background(rng, size, size, dial.texture)
    where = place(source.alphas[index], size, size, tuple(centre), side, rng.uniform(-dial.degrees, dial.degrees))
    image = paint(behind, where, ink(rng, behind, where, dial.inverted))
    return add_noise(rng, image, dial.noise), int(source.labels[index])
