"""One command of a plan: what it reads, what it makes. Which steps it waits for follows from that."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """``ssql-det`` with ``arguments``. ``folder`` is the step's own.

    >>> Step("convert-ssql-0", "convert", ("convert", "a.pth", "b/b.pkl", "--to", "detectron2"), Path("b"),
    ...      reads=(Path("a.pth"),), makes=(Path("b/b.pkl"),), minutes=0.2, megabytes=3)
    """

    name: str
    kind: str
    arguments: tuple[str, ...]
    folder: Path
    reads: tuple[Path, ...]
    makes: tuple[Path, ...]
    minutes: float
    megabytes: float

    @property
    def command(self) -> str:
        return shlex.join(["ssql-det", *self.arguments])


def needed_by(step: Step, steps: Sequence[Step]) -> Iterator[Step]:
    """The steps that make what this one reads."""
    read = set(step.reads)
    yield from (other for other in steps if read.intersection(other.makes))


def makespan(steps: Sequence[Step], lanes: int) -> float:
    """How many minutes the steps take when so many run at a time, each as soon as its inputs are there."""
    now, waiting, running = 0.0, list(steps), dict[str, float]()
    while waiting or running:
        absent = {step.name for step in waiting} | set(running)
        ready = [step for step in waiting if not any(other.name in absent for other in needed_by(step, steps))]
        for step in ready[: lanes - len(running)]:
            running[step.name] = now + step.minutes
            waiting.remove(step)
        first = min(running, key=running.__getitem__)
        now = running.pop(first)
    return now
