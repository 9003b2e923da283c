"""Resume state: with it, a run that was killed and resumed is, bit for bit on the CPU, the run that was not.

What a loop must carry beside its weights and optimizer: the state of every random generator and the
position in the data. The file is written atomically and read by the restricted reader.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.reader import read_tensors

FORMAT = "ssql_det resume state"
VERSION = 1


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


@dataclass(frozen=True)
class DataPosition:
    """Where a run stands in its data: the epoch, and how many samples of it have been consumed."""

    epoch: int = 0
    samples: int = 0


@dataclass(frozen=True)
class ResumeState:
    """Everything a loop needs to go on.

    ``parts`` holds the ``state_dict`` of each thing with one (model, optimizer, schedule, ...);
    ``rng`` has one entry a rank.

    >>> save("run/last.pth", ResumeState(step, position, [RngState.capture()], {"model": model.state_dict()}))
    >>> state = load("run/last.pth")
    >>> model.load_state_dict(state.parts["model"]); state.rng[rank()].restore()
    """

    step: int
    position: DataPosition
    rng: list[RngState]
    parts: Mapping[str, Any] = field(default_factory=dict)


def save(path: str | os.PathLike[str], state: ResumeState) -> None:
    """Write the state; a kill at any moment leaves the last good file."""
    record = {
        "format": FORMAT,
        "version": VERSION,
        "step": state.step,
        "position": asdict(state.position),
        "rng": [vars(rng) for rng in state.rng],
        "parts": dict(state.parts),
    }
    with atomic_write(path) as file:
        torch.save(record, file)


def load(path: str | os.PathLike[str]) -> ResumeState:
    """Read what :func:`save` wrote; any other file is refused in one sentence."""
    record = read_tensors(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is not a resume state; name the checkpoint that the run itself wrote")
    if record["version"] > VERSION:
        raise UserError(f"{path} has version {record['version']}, this ssql_det reads up to {VERSION}; update it")
    return ResumeState(
        step=record["step"],
        position=DataPosition(**record["position"]),
        rng=[RngState(**rng) for rng in record["rng"]],
        parts=record["parts"],
    )
