"""Steps in lanes: each as soon as what it reads is there; one that fails stops those that need it and no other.

On the CPU a step has one thread: so several lie side by side, and the numbers do not depend on how many.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ssql_det.core.errors import UserError
from ssql_det.reproduce.ledger import Ledger, Step, makespan, needed_by

DONE, FAILED, WAITED = "done", "failed", "not begun"
_LOOK, _TELL = 0.1, 30.0  # seconds between looks at the processes, and between lines
_STOP_SECONDS = 5.0  # that steps have to end after SIGTERM
_DOUBT = 3.0  # minutes of work until what was measured counts as much as what was expected
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a step. ``reason`` is one sentence where it is not done."""

    state: str
    seconds: float = 0.0
    reason: str = ""
    was_there: bool = False


@dataclass(frozen=True)
class _Running:
    step: Step
    process: subprocess.Popen[bytes]
    began: float


def run(
    steps: Sequence[Step], out: Path, lanes: int, program: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Outcome]:
    """What became of each step, by its name. ``program`` takes a step's arguments.

    >>> outcomes = run(plan.steps, plan.out, 2, [sys.executable, "-m", "ssql_det.cli.child"], environment(plan.data))
    """
    ledger, outcomes = Ledger(out), dict[str, Outcome]()
    with _alone_in(out):
        running: dict[str, _Running] = {}
        progress = _Progress(steps, lanes)
        try:
            while len(outcomes) < len(steps):
                _settle(running, ledger, outcomes)
                waiting = [step for step in steps if step.name not in outcomes and step.name not in running]
                for step in waiting:
                    needed = [outcomes.get(other.name) for other in needed_by(step, steps)]
                    if any(each is not None and each.state != DONE for each in needed):
                        outcomes[step.name] = Outcome(WAITED, reason="a step that it needs is not done")
                    elif len(running) < lanes and None not in needed:
                        _begin(step, ledger, outcomes, running, program, environment)
                progress.tell(outcomes, running)
                time.sleep(_LOOK if running else 0)
        finally:
            _stop([each.process for each in running.values()])
    return outcomes


def _begin(
    step: Step,
    ledger: Ledger,
    outcomes: dict[str, Outcome],
    running: dict[str, _Running],
    program: Sequence[str],
    environment: Mapping[str, str],
) -> None:
    try:
        if ledger.is_done(step):
            outcomes[step.name] = Outcome(DONE, ledger.seconds(step) or 0.0, was_there=True)
            _logger.info("%s is done already", step.name)
            return
        ledger.begin(step)
    except UserError as refusal:
        outcomes[step.name] = Outcome(FAILED, reason=str(refusal))
        _logger.error("%s: %s", step.name, refusal)
        return
    log = log_of(ledger.out, step)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        command = [*program, *step.arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=dict(environment))
    running[step.name] = _Running(step, process, time.monotonic())
    _logger.info("%s begins", step.name)


def _settle(running: dict[str, _Running], ledger: Ledger, outcomes: dict[str, Outcome]) -> None:
    """Take what has ended out of the lanes."""
    for name in [name for name, each in running.items() if each.process.poll() is not None]:
        each = running.pop(name)
        seconds, reason = time.monotonic() - each.began, ""
        if each.process.returncode:
            reason = _last_words(log_of(ledger.out, each.step), each.process.returncode)
        else:
            try:
                ledger.finish(each.step, seconds)
            except UserError as refusal:
                reason = str(refusal)
        outcomes[name] = Outcome(FAILED if reason else DONE, seconds, reason)
        if reason:
            _logger.error("%s failed: %s; all it said: %s", name, reason, log_of(ledger.out, each.step))
        else:
            _logger.info("%s is done, %.0f s", name, seconds)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the steps that still run, and with SIGTERM first, so that they end their own processes."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def log_of(out: Path, step: Step) -> Path:
    return out / "logs" / f"{step.name}.txt"


def _last_words(log: Path, status: int) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
    return said[-1] if said else f"it ended with status {status} and said nothing"


def environment(data: Path, on_gpu: bool = False) -> dict[str, str]:
    """This process's, and one thread a step on the CPU."""
    threads = {} if on_gpu else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **threads, "DETECTRON2_DATASETS": str(data)}


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """One run a folder; the lock goes with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process works in {out}; wait for it, or choose another --out") from None
        yield


class _Progress:
    """Every half a minute how far it is, and when it will be done, by what the steps so far took of their estimate."""

    def __init__(self, steps: Sequence[Step], lanes: int) -> None:
        self._steps, self._lanes = steps, lanes
        self._began = self._told = time.monotonic()

    def tell(self, outcomes: Mapping[str, Outcome], running: Mapping[str, _Running]) -> None:
        now = time.monotonic()
        if now - self._told < _TELL:
            return
        self._told = now
        behind = {name: (now - each.began) / 60 for name, each in running.items()}
        factor = self._factor(outcomes)
        left = [
            replace(step, minutes=max(step.minutes * factor - behind.get(step.name, 0.0), 0.05))
            for step in self._steps
            if step.name not in outcomes
        ]
        minutes = max(makespan(left, self._lanes), 0.1)
        _logger.info(
            "%d of %d steps, %.1f min so far, about %.0f min left; now %s",
            *(len(outcomes), len(self._steps), (now - self._began) / 60, minutes, ", ".join(behind)),
        )

    def _factor(self, outcomes: Mapping[str, Outcome]) -> float:
        """How much longer than expected steps take here; a few short ones do not say much."""
        done = [step for step in self._steps if step.name in outcomes and outcomes[step.name].state == DONE]
        expected = sum(step.minutes for step in done)
        taken = sum(outcomes[step.name].seconds for step in done) / 60
        return (taken + _DOUBT) / (expected + _DOUBT)
