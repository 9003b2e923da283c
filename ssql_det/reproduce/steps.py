"""The steps of a plan: ``ssql-det`` commands with their inputs and outputs, dependencies and estimated run time."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """The command ``ssql-det`` with ``arguments``. ``folder`` is used by no other step.

    >>> step = Step("convert-ssql-0", "convert", ("convert", "a.pth", "b/b.pkl", "--to", "detectron2"), Path("b"),
    ...             inputs=(Path("a.pth"),), outputs=(Path("b/b.pkl"),), minutes=0.2, megabytes=3)
    >>> step.command
    'ssql-det convert a.pth b/b.pkl --to detectron2'
    """

    name: str
    kind: str  # such as "pretrain" or "sweep"; all kinds are listed in plan.py
    arguments: tuple[str, ...]
    folder: Path
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    minutes: float  # estimated
    megabytes: float  # on disk, estimated

    @property
    def command(self) -> str:
        return shlex.join(["ssql-det", *self.arguments])


def find_dependencies(step: Step, steps: Sequence[Step]) -> Iterator[Step]:
    """The steps that make the inputs of this one."""
    inputs = set(step.inputs)
    yield from (other for other in steps if inputs.intersection(other.outputs))


def estimate_makespan(steps: Sequence[Step], jobs: int) -> float:
    """The minutes that the steps take with ``jobs`` at a time, if each starts as soon as its inputs exist."""
    now, waiting, running = 0.0, list(steps), dict[str, float]()  # running: the end of each running step
    while waiting or running:
        unfinished = {step.name for step in waiting} | set(running)
        ready = [
            step for step in waiting if not any(other.name in unfinished for other in find_dependencies(step, steps))
        ]
        for step in ready[: jobs - len(running)]:
            running[step.name] = now + step.minutes
            waiting.remove(step)
        first = min(running, key=running.__getitem__)
        now = running.pop(first)
    return now
