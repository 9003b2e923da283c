"""Training curves: the same scalars as JSON lines and as TensorBoard events.

A resumed run takes up where its checkpoint stood: what the killed run wrote after that step is dropped,
so that the history is the one of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.rows import finite_or_none

CURVES_NAME = "metrics.jsonl"


class Writer(Protocol):
    """Takes named scalars of one step."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonWriter:
    """One line a step: ``{"step": 40, "loss": 0.71, ...}``; each line is on its way to disk when written.

    >>> JsonWriter(run, resume_step=state.step)
    """

    def __init__(self, directory: str | os.PathLike[str], resume_step: int | None = None) -> None:
        path = Path(directory) / CURVES_NAME
        kept = _lines_until(path, resume_step) if resume_step is not None and path.exists() else []
        with atomic_write(path, "w") as file:
            file.writelines(kept)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (lives as long as the run)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._file.write(
            json.dumps({"step": step} | {name: finite_or_none(value) for name, value in scalars.items()}) + "\n"
        )

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Event files in ``directory``; ``tensorboard --logdir`` shows them."""

    def __init__(self, directory: str | os.PathLike[str], resume_step: int | None = None) -> None:
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Writers:
    """Several writers as one, closed together.

    >>> with closing(Writers([JsonWriter(run), TensorBoardWriter(run)])) as writer:
    ...     writer.write(step, {"loss": loss.item()})
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, scalars)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def _lines_until(path: Path, last_step: int) -> list[str]:
    """The whole lines up to a step; a line that a kill has torn ends the file."""
    kept = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            written = json.loads(line)
        except json.JSONDecodeError:
            break
        except (RecursionError, ValueError):  # nested without end, or a number of thousands of digits
            written = None
        if not isinstance(written, dict) or not isinstance(written.get("step"), int):
            raise UserError(f"{path} has a line without a step, so it is not of this run; move it away to go on")
        if written["step"] <= last_step:
            kept.append(f"{line}\n")
    return kept
