"""The state of every random generator: with it a resumed run draws what the run that was not stopped would draw.

>>> content["rng"] = every_ranks_state()  # into a checkpoint, on every rank
>>> restore_own_state(content["rng"])  # out of it
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssql_det.core.ranks import all_gather, rank


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


def every_ranks_state() -> list[dict[str, Any]]:
    """The generators of all processes in plain containers, by rank."""
    return all_gather(vars(RngState.capture()))


def restore_own_state(states: Sequence[Mapping[str, Any]]) -> None:
    """This process's of them. One that was not there before keeps the generators that it began with."""
    if rank() < len(states):
        RngState(**states[rank()]).restore()


def _plain(state: Any) -> tuple[Any, ...]:
    """NumPy's state in numbers: a checkpoint with arrays in it cannot be read by ``torch.load`` as it is by default."""
    name, keys, *rest = state
    return (name, keys.tolist(), *rest)
