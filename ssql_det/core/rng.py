"""Random number generators: seeds derived from a sample's position, and saving and restoring generator state.

A sample's seed depends only on the run's seed and the sample's position, so a resumed run, or one with another number
of workers or processes, draws the same random numbers for it.
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
    """A 32-bit seed that depends on all parts, the same on every machine and in every version.

    >>> derive_seed(0, 17), derive_seed(0, 18)
    (3381194822, 2311754897)
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4], "little")


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    for seed_generator in (random.seed, np.random.seed, torch.manual_seed):
        seed_generator(seed)


@contextmanager
def seeded_rng(*seed_parts: int | str) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators from ``seed_parts``; on exit their state is restored.

    >>> with seeded_rng(seed, "sample 17"):
    ...     first = torch.rand(2)
    >>> with seeded_rng(seed, "sample 17"):
    ...     torch.equal(torch.rand(2), first)
    True
    """
    with restoring_rng():
        seed_cpu_rng(*seed_parts)
        yield


@contextmanager
def restoring_rng() -> Iterator[None]:
    """Restore the state of Python's, NumPy's and torch's CPU generators on exit."""
    before = RngState.capture(with_cuda=False)
    try:
        yield
    finally:
        before.restore()


def seed_cpu_rng(*seed_parts: int | str) -> None:
    """Seed Python's, NumPy's and torch's CPU generators from ``seed_parts``, inside :func:`restoring_rng`."""
    seed = derive_seed(*seed_parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class RngState:
    """State of Python's, NumPy's and torch's global generators, including the current CUDA device's."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    cpu: torch.Tensor
    cuda: torch.Tensor | None  # None without a GPU, or if it was not captured

    @classmethod
    def capture(cls, with_cuda: bool = True) -> RngState:
        """``with_cuda=False`` is for data loader workers, which must not touch the device."""
        return cls(
            python=random.getstate(),
            numpy=_to_plain_numbers(np.random.get_state(legacy=True)),
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
    """The generator states of all ranks, in plain containers that a checkpoint can hold; call it on every rank."""
    return all_gather(vars(RngState.capture()))


def restore_rng_state(states: Sequence[Mapping[str, Any]]) -> None:
    """Restore this rank's generators. A rank that the saved run did not have keeps its current state.

    >>> states = gather_rng_states()
    >>> drawn = torch.rand(2)
    >>> restore_rng_state(states)
    >>> torch.equal(torch.rand(2), drawn)
    True
    """
    if rank() < len(states):
        RngState(**states[rank()]).restore()


def _to_plain_numbers(numpy_state: Any) -> tuple[Any, ...]:
    """A state without arrays, which ``torch.load(weights_only=True)`` could not read."""
    name, keys, *rest = numpy_state
    return (name, keys.tolist(), *rest)
