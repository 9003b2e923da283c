"""Random choices that follow from the seed and the place of a sample, not from the state of a generator.

So any run finds its place again: a resumed one, one with other workers, one that is spread over more processes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ssql_det.core.generators import RngState


def number_of(*parts: int | str) -> int:
    """32 bits that depend on all parts, the same on every machine and in every version.

    >>> number_of(0, 17), number_of(0, 18)
    (1231862990, 2863823384)
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4], "little")


def seed_all(seed: int) -> None:
    """Begin every generator of this process: Python's, NumPy's and torch's, on every device."""
    for begin in (random.seed, np.random.seed, torch.manual_seed):
        begin(seed)


@contextmanager
def choices_of(*place: int | str) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's generators are as the place alone makes them; afterwards as they were.

    >>> with choices_of(seed, position):
    ...     view = augment(image)
    """
    before = RngState.capture(with_cuda=False)
    drawn = number_of(*place)
    random.seed(drawn)
    np.random.seed(drawn)
    torch.default_generator.manual_seed(drawn)
    try:
        yield
    finally:
        before.restore()
