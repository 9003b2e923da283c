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
from ssql_det.reproduce.step_cache import Step, StepCache, estimate_makespan, find_dependencies

DONE, FAILED, SKIPPED = "done", "failed", "not begun"
_LOOK, _TELL = 0.1, 30.0  # seconds between looks at the processes, and between lines
_STOP_SECONDS = 5.0  # that steps have to end after SIGTERM
_DOUBT = 3.0  # minutes of work until what was measured counts as much as what was expected
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutcome:
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


def run_steps(
    steps: Sequence[Step], out: Path, lanes: int, program: Sequence[str], environment: Mapping[str, str]
) -> dict[str, StepOutcome]:
    """What became of each step, by its name. ``program`` takes a step's arguments.

    >>> outcomes = run_steps(plan.steps, plan.out, 2, [sys.executable, "-m", "ssql_det.cli.child"], make_environment(plan.data))
    """
    ledger, outcomes = StepCache(out), dict[str, StepOutcome]()
    with _alone_in(out):
        running: dict[str, _Running] = {}
        progress = _Progress(steps, lanes)
        try:
            while len(outcomes) < len(steps):
                _settle(running, ledger, outcomes)
                waiting = [step for step in steps if step.name not in outcomes and step.name not in running]
                for step in waiting:
                    needed = [outcomes.get(other.name) for other in find_dependencies(step, steps)]
                    if any(each is not None and each.state != DONE for each in needed):
                        outcomes[step.name] = StepOutcome(SKIPPED, reason="a step that it needs is not done")
                    elif len(running) < lanes and None not in needed:
                        _begin(step, ledger, outcomes, running, program, environment)
                progress.tell(outcomes, running)
                time.sleep(_LOOK if running else 0)
        finally:
            _stop([each.process for each in running.values()])
    return outcomes


def _begin(
    step: Step,
    ledger: StepCache,
    outcomes: dict[str, StepOutcome],
    running: dict[str, _Running],
    program: Sequence[str],
    environment: Mapping[str, str],
) -> None:
    try:
        if ledger.is_done(step):
            outcomes[step.name] = StepOutcome(DONE, ledger.seconds(step) or 0.0, was_there=True)
            _logger.info("%s is done already", step.name)
            return
        ledger.begin(step)
    except UserError as refusal:
        outcomes[step.name] = StepOutcome(FAILED, reason=str(refusal))
        _logger.error("%s: %s", step.name, refusal)
        return
    log = get_log_path(ledger.out, step)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        command = [*program, *step.arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=dict(environment))
    running[step.name] = _Running(step, process, time.monotonic())
    _logger.info("%s begins", step.name)


def _settle(running: dict[str, _Running], ledger: StepCache, outcomes: dict[str, StepOutcome]) -> None:
    """Take what has ended out of the lanes."""
    for name in [name for name, each in running.items() if each.process.poll() is not None]:
        each = running.pop(name)
        seconds, reason = time.monotonic() - each.began, ""
        if each.process.returncode:
            reason = _last_words(get_log_path(ledger.out, each.step), each.process.returncode)
        else:
            try:
                ledger.finish(each.step, seconds)
            except UserError as refusal:
                reason = str(refusal)
        outcomes[name] = StepOutcome(FAILED if reason else DONE, seconds, reason)
        if reason:
            _logger.error("%s failed: %s; all it said: %s", name, reason, get_log_path(ledger.out, each.step))
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


def get_log_path(out: Path, step: Step) -> Path:
    return out / "logs" / f"{step.name}.txt"


def _last_words(log: Path, status: int) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
    return said[-1] if said else f"it ended with status {status} and said nothing"


def make_environment(data: Path, on_gpu: bool = False) -> dict[str, str]:
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

    def tell(self, outcomes: Mapping[str, StepOutcome], running: Mapping[str, _Running]) -> None:
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
        minutes = max(estimate_makespan(left, self._lanes), 0.1)
        _logger.info(
            "%d of %d steps, %.1f min so far, about %.0f min left; now %s",
            *(len(outcomes), len(self._steps), (now - self._began) / 60, minutes, ", ".join(behind)),
        )

    def _factor(self, outcomes: Mapping[str, StepOutcome]) -> float:
        """How much longer than expected steps take here; a few short ones do not say much."""
        done = [step for step in self._steps if step.name in outcomes and outcomes[step.name].state == DONE]
        expected = sum(step.minutes for step in done)
        taken = sum(outcomes[step.name].seconds for step in done) / 60
        return (taken + _DOUBT) / (expected + _DOUBT)
