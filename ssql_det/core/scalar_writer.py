"""Training curves: the same scalars as JSON lines in ``metrics.jsonl`` and as TensorBoard events.

When a run resumes, the lines and events after its checkpoint are dropped, so its history equals that of a run that was
never stopped.
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

METRICS_NAME = "metrics.jsonl"


@contextmanager
def scalar_writer(folder: Path, resume_step: int | None = None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function that writes the scalars of a step; it writes on rank 0 only.

    Each line is written at once. ``tensorboard --logdir`` shows the events. ``resume_step`` is the last step of the
    earlier run to keep; with ``None`` no line is kept.

    >>> from pathlib import Path
    >>> with scalar_writer(Path("run")) as write:
    ...     write(40, {"loss": 0.71})
    >>> Path("run/metrics.jsonl").read_text()
    '{"step": 40, "loss": 0.71}\\n'
    """
    if not is_main():
        yield lambda step, scalars: None
        return
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError:
        message = f"TensorBoard cannot write to {folder}: the name is no text in this locale; choose another OUTPUT_DIR"
        raise UserError(message) from None
    path = folder / METRICS_NAME
    kept_lines = _read_lines_until(path, resume_step) if resume_step is not None and path.exists() else []
    with atomic_write(path, "w") as file:
        file.writelines(kept_lines)
    purge_step = None if resume_step is None else resume_step + 1
    with (
        open(path, "a", encoding="utf-8", buffering=1) as lines,
        SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step) as events,
    ):

        def write(step: int, scalars: Mapping[str, float]) -> None:
            finite = {name: finite_or_none(value) for name, value in scalars.items()}
            lines.write(json.dumps({"step": step} | finite) + "\n")
            for name, value in scalars.items():
                events.add_scalar(name, value, step)

        yield write


def _read_lines_until(path: Path, last_step: int) -> list[str]:
    """The lines up to a step; a truncated line, as a kill leaves it, is the end of the file."""
    kept = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path} has a line without a step, so no run wrote it; move it away to resume")
        if record["step"] <= last_step:
            kept.append(f"{line}\n")
    return kept
