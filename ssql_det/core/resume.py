"""The state of every random generator: with it a resumed run draws what the run that was not stopped would draw."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


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


def _plain(state: Any) -> tuple[Any, ...]:
    """NumPy's state in numbers: a checkpoint with arrays in it cannot be read by ``torch.load`` as it is by default."""
    name, keys, *rest = state
    return (name, keys.tolist(), *rest)
