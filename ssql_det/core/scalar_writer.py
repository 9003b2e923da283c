"""Training curves: the same scalars as JSON lines and as TensorBoard events.

A resumed run takes up where its checkpoint stood: what the killed run wrote after that step is dropped,
so that the history is the one of a run that was never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ssql_det.core.distributed import is_main
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.rows import finite_or_none


@contextmanager
def scalar_writer(folder: Path, resume_step: int | None = None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Inside, a function takes the scalars of a step; of several processes the first writes them.

    A line each, ``{"step": 40, "loss": 0.71, ...}``, is on its way to disk when written; ``tensorboard --logdir``
    shows the events. ``resume_step`` is the last step that is kept of what was written before.

    >>> with scalar_writer(run, resume_step=state.step) as write:
    ...     write(step, {"loss": loss.item()})
    """
    if not is_main():
        yield lambda step, scalars: None
        return
    path = folder / "metrics.jsonl"
    kept = _lines_until(path, resume_step) if resume_step is not None and path.exists() else []
    with atomic_write(path, "w") as file:
        file.writelines(kept)
    purge = None if resume_step is None else resume_step + 1
    with (
        open(path, "a", encoding="utf-8", buffering=1) as lines,
        SummaryWriter(str(folder / "tensorboard"), purge_step=purge) as events,
    ):

        def write(step: int, scalars: Mapping[str, float]) -> None:
            finite = {name: finite_or_none(value) for name, value in scalars.items()}
            lines.write(json.dumps({"step": step} | finite) + "\n")
            for name, value in scalars.items():
                events.add_scalar(name, value, step)

        yield write


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
