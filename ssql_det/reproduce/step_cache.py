"""What is done already, and from which inputs: one small file a step, ``OUT/steps/<name>.json``.

A step is done while its command, the content of what it reads and the content of what it made are those of then. One
that was killed goes on in its folder; one whose inputs have changed begins anew, and what was in its folder is moved to
``OUT/replaced``: it may have taken days.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ssql_det.core.config import read_config_file
from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write, sha256

_CONFIGS = (".yaml", ".yml")
_EXTENDED_BY = {  # with other values of these options it goes on in its folder: what is done by then stays as it is
    "pretrain": ("--num-gpus",),
    "train": ("--num-gpus",),
    "sweep": ("--bits", "--num-gpus"),
    "probe": ("--bits",),
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepCache:
    """
    >>> ledger = StepCache(Path("runs/mini"))
    >>> if not ledger.is_done(step):
    ...     ledger.begin(step)
    ...     ...
    ...     ledger.finish(step, seconds=71.0)
    """

    out: Path

    def is_done(self, step: Step) -> bool:
        entry = self._entry(step)
        files = [path for path in step.reads if path.suffix not in _CONFIGS]  # configs may be the package's
        if entry is None or "made" not in entry or not all(path.is_file() for path in files):
            return False
        return entry["asked"] == self._asked(step) and self._is_intact(step, entry)

    def begin(self, step: Step) -> None:
        """Note what is about to be done; what is not the beginning of it is moved out of the step's folder."""
        entry, asked = self._entry(step), self._asked(step)
        goes_on = entry is not None and self._is_intact(step, entry) and _same_run(step, entry["asked"], asked)
        if step.folder.exists() and not goes_on and step.kind != "data":  # toy data know themselves what is theirs
            if entry is None:
                raise UserError(f"{step.folder} is there and no step has made it; choose another --out")
            self._put_aside(step)
        self._write(step, {"asked": asked})

    def finish(self, step: Step, seconds: float) -> None:
        """All that it had to make is there."""
        missing = [path for path in step.makes if not path.is_file()]
        if missing:
            raise UserError(f"{step.name} ended well and did not make {missing[0]}; please report it")
        entry = self._entry(step) or {}  # what was asked when it began: an input may have been changed since
        self._write(step, {**entry, "made": self._hashes(step.makes), "seconds": round(seconds, 1)})

    def seconds(self, step: Step) -> float | None:
        """How long it took when it was done; of one that was killed before, only what came after."""
        return (self._entry(step) or {}).get("seconds")

    def _is_intact(self, step: Step, entry: dict[str, Any]) -> bool:
        """Whether nobody has altered what it made, if it has ended before."""
        if "made" not in entry:
            return True
        return all(path.is_file() for path in step.makes) and bool(entry["made"] == self._hashes(step.makes))

    def _put_aside(self, step: Step) -> None:
        place = self.out / "replaced" / f"{step.name}.{time.strftime('%Y%m%d-%H%M%S')}"
        place.parent.mkdir(parents=True, exist_ok=True)
        step.folder.rename(place)
        _logger.warning("%s begins anew, for it is asked otherwise; what was there is in %s", step.name, place)

    def _path(self, step: Step) -> Path:
        return self.out / "steps" / f"{step.name}.json"

    def _entry(self, step: Step) -> dict[str, Any] | None:
        path = self._path(step)
        if not path.exists():
            return None
        try:
            entry = json.loads(path.read_text("utf-8"))
            return {"asked": entry["asked"], **entry}
        except (KeyError, RecursionError, TypeError, ValueError):
            raise UserError(f"{path} is damaged; delete it together with {step.folder}") from None

    def _write(self, step: Step, entry: dict[str, Any]) -> None:
        with atomic_write(self._path(step), "w") as file:
            json.dump(entry, file, indent=1)

    def _asked(self, step: Step) -> dict[str, Any]:
        """A folder that was moved is the same folder: paths in it are told from ``OUT``."""
        arguments = [self._told(argument) for argument in step.arguments]
        return {"arguments": arguments, "read": self._hashes(step.reads)}

    def _hashes(self, paths: tuple[Path, ...]) -> dict[str, str]:
        return {self._told(str(path)): compute_fingerprint(path) for path in paths}

    def _told(self, text: str) -> str:
        return f"OUT{text[len(str(self.out)) :]}" if f"{text}/".startswith(f"{self.out}/") else text


def _same_run(step: Step, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """But for what extends it."""
    options = _EXTENDED_BY.get(step.kind, ())
    then, here = ({**each, "arguments": remove_options(each["arguments"], options)} for each in (before, now))
    return then == here


def remove_options(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Arguments without some options and their values.

    >>> remove_options(["sweep", "--bits", "FP,4", "--scope", "all"], ["--bits"])
    ['sweep', '--scope', 'all']
    """
    pairs = pairwise(["", *arguments])
    return [argument for before, argument in pairs if before not in options and argument not in options]


def compute_fingerprint(path: Path) -> str:
    """Of a config what it says, its bases included; of any other file the hash of its bytes."""
    if path.suffix not in _CONFIGS:
        return sha256(path)
    return json.dumps(read_config_file(path), sort_keys=True)


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


def find_dependencies(step: Step, steps: Sequence[Step]) -> Iterator[Step]:
    """The steps that make what this one reads."""
    read = set(step.reads)
    yield from (other for other in steps if read.intersection(other.makes))


def estimate_makespan(steps: Sequence[Step], lanes: int) -> float:
    """How many minutes the steps take when so many run at a time, each as soon as its inputs are there."""
    now, waiting, running = 0.0, list(steps), dict[str, float]()
    while waiting or running:
        absent = {step.name for step in waiting} | set(running)
        ready = [step for step in waiting if not any(other.name in absent for other in find_dependencies(step, steps))]
        for step in ready[: lanes - len(running)]:
            running[step.name] = now + step.minutes
            waiting.remove(step)
        first = min(running, key=running.__getitem__)
        now = running.pop(first)
    return now
