"""Training curves: the same scalars as JSON lines in ``metrics.jsonl`` and as TensorBoard events.

When a run resumes, the lines and events after its checkpoint are dropped, so its history equals that of a run that was
never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ssql_det.core.distributed import is_main
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write, read_text
from ssql_det.core.json_files import parse_json
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
    has_history = resume_step is not None and path.exists()
    records = [each for each in read_scalars(path) if each["step"] <= resume_step] if has_history else []
    with atomic_write(path, "w") as file:
        file.writelines(f"{json.dumps(each)}\n" for each in records)
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


def read_scalars(path: Path) -> Iterator[dict[str, Any]]:
    """The scalars of each line, among them ``step``; a truncated line, as a kill leaves it, is the end of the file."""
    for number, line in enumerate(read_text(path, errors="replace").split("\n"), start=1):
        try:
            record = parse_json(line)
        except json.JSONDecodeError:
            return
        except ValueError:
            record = None
        is_valid = isinstance(record, dict) and type(record.get("step")) is int
        if not is_valid or not all(value is None or type(value) in (int, float) for value in record.values()):
            raise UserError(
                f"{path} has a line without a step or with a value that is no number (line {number}); "
                "no run wrote that; move the file away"
            )
        yield record
