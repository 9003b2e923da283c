"""Random choices that follow from the seed and the place of a sample, and the state of generators for all others.

So any run finds its place again: a resumed one, one with other workers, one that is spread over more processes.

>>> content["rng"] = gather_rng_states()  # into a checkpoint, on every rank
>>> restore_rng_state(content["rng"])  # out of it
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssql_det.core.distributed import all_gather, rank


def derive_seed(*parts: int | str) -> int:
    """32 bits that depend on all parts, the same on every machine and in every version.

    >>> derive_seed(0, 17), derive_seed(0, 18)
    (1231862990, 2863823384)
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4], "little")


def seed_all(seed: int) -> None:
    """Begin every generator of this process: Python's, NumPy's and torch's, on every device."""
    for begin in (random.seed, np.random.seed, torch.manual_seed):
        begin(seed)


@contextmanager
def seeded_rng(*place: int | str) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's generators are as the place alone makes them; afterwards as they were.

    >>> with seeded_rng(seed, position):
    ...     view = augment(image)
    """
    before = RngState.capture(with_cuda=False)
    drawn = derive_seed(*place)
    random.seed(drawn)
    np.random.seed(drawn)
    torch.default_generator.manual_seed(drawn)
    try:
        yield
    finally:
        before.restore()


@dataclass(frozen=True)
class RngState:
    """Python's, NumPy's and torch's global generators (and this process's CUDA device's)."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def capture(cls, with_cuda: bool = True) -> RngState:
        """``with_cuda=False`` for worker processes, which may not touch the device."""
        return cls(
            python=random.getstate(),
            numpy=_plain(np.random.get_state(legacy=True)),
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state() if with_cuda and torch.cuda.is_available() else None,
        )

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)


def gather_rng_states() -> list[dict[str, Any]]:
    """The generators of all processes in plain containers, by rank."""
    return all_gather(vars(RngState.capture()))


def restore_rng_state(states: Sequence[Mapping[str, Any]]) -> None:
    """This process's of them. One that was not there before keeps the generators that it began with."""
    if rank() < len(states):
        RngState(**states[rank()]).restore()


def _plain(state: Any) -> tuple[Any, ...]:
    """NumPy's state in numbers: a checkpoint with arrays in it cannot be read by ``torch.load`` as it is by default."""
    name, keys, *rest = state
    return (name, keys.tolist(), *rest)
