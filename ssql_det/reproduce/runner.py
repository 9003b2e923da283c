"""Run the steps of a plan as parallel jobs: each as soon as its inputs exist; a failure stops only dependent steps.

On the CPU each job has one thread: the order of additions, and so the last digits, depend on the number of threads.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from ssql_det.core.errors import UserError
from ssql_det.core.processes import make_child
from ssql_det.core.run_folder import owning_folder
from ssql_det.reproduce.step_cache import StepCache
from ssql_det.reproduce.steps import Step, estimate_makespan, find_dependencies

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
_POLL_SECONDS, _LOG_SECONDS = 0.1, 30.0  # between checks of the running jobs, and between logs of the progress
_STOP_SECONDS = 5.0  # from SIGTERM to SIGKILL
_PRIOR_MINUTES = 3.0  # weight of the estimates relative to measured minutes, see _estimate_slowdown
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutcome:
    """How a step ended."""

    state: str  # DONE, FAILED or SKIPPED
    seconds: float = 0.0  # of a cached step: those of the run that made its outputs
    reason: str = ""  # one sentence why the step is not done
    was_cached: bool = False


@dataclass(frozen=True)
class _Job:
    step: Step
    process: BaseProcess
    start: float  # of time.monotonic()


def run_steps(
    steps: Sequence[Step],
    out: Path,
    jobs: int,
    main: Callable[[Sequence[str]], None],
    environment: Mapping[str, str],
) -> dict[str, StepOutcome]:
    """Run steps in the folder ``out``, ``jobs`` at a time; return outcomes by step name.

    Each step is a process with this environment, which calls ``main`` with the step's arguments.
    """
    cache, outcomes = StepCache(out), dict[str, StepOutcome]()
    with owning_folder(out):
        running: dict[str, _Job] = {}
        progress = _Progress(steps, jobs)
        try:
            while len(outcomes) < len(steps):
                _collect_finished(running, cache, outcomes)
                waiting = [step for step in steps if step.name not in outcomes and step.name not in running]
                for step in waiting:
                    dependencies = [outcomes.get(other.name) for other in find_dependencies(step, steps)]
                    if any(outcome is not None and outcome.state != DONE for outcome in dependencies):
                        outcomes[step.name] = StepOutcome(SKIPPED, reason="a step that it needs failed or was skipped")
                    elif len(running) < jobs and None not in dependencies:
                        _start(step, cache, outcomes, running, main, environment)
                progress.log(outcomes, running)
                time.sleep(_POLL_SECONDS if running else 0)
        finally:
            _stop([job.process for job in running.values()])
    return outcomes


def _start(
    step: Step,
    cache: StepCache,
    outcomes: dict[str, StepOutcome],
    running: dict[str, _Job],
    main: Callable[[Sequence[str]], None],
    environment: Mapping[str, str],
) -> None:
    try:
        if cache.is_cached(step):
            outcomes[step.name] = StepOutcome(DONE, cache.get_seconds(step) or 0.0, was_cached=True)
            _logger.info("%s: cached", step.name)
            return
        cache.begin(step)  # moves what the folder holds away unless the step can resume from it
    except UserError as error:
        outcomes[step.name] = StepOutcome(FAILED, reason=str(error))
        _logger.error("%s: %s", step.name, error)
        return
    log = get_log_path(cache.out, step)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = make_child(_run_job, main, step.arguments, log, environment=environment)
    with _environment(environment):  # libraries read the number of threads when they are imported
        process.start()
    running[step.name] = _Job(step, process, time.monotonic())
    _logger.info("%s: started", step.name)


def _run_job(main: Callable[[Sequence[str]], None], arguments: Sequence[str], log: Path) -> None:
    with open(log, "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    main(arguments)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, these variables are set in this process."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _collect_finished(running: dict[str, _Job], cache: StepCache, outcomes: dict[str, StepOutcome]) -> None:
    for name in [name for name, job in running.items() if job.process.exitcode is not None]:
        job = running.pop(name)
        seconds, reason, log = time.monotonic() - job.start, "", get_log_path(cache.out, job.step)
        if job.process.exitcode:
            reason = _read_error(log, job.process.exitcode)
        else:
            try:
                cache.finish(job.step, seconds)
            except UserError as error:
                reason = str(error)
        outcomes[name] = StepOutcome(FAILED if reason else DONE, seconds, reason)
        if reason:
            _logger.error("%s: failed: %s (log: %s)", name, reason, log)
        else:
            _logger.info("%s: done in %.0f s", name, seconds)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Terminate running jobs: with SIGTERM first, so that they can end their child processes."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        if process.is_alive():
            process.kill()
            process.join()


def get_log_path(out: Path, step: Step) -> Path:
    return out / "logs" / f"{step.name}.txt"


def _read_error(log: Path, exit_code: int) -> str:
    """The last line that starts with "error: ", or else the last line."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
    return errors[-1] if errors else f"the step ended with exit code {exit_code} and without output"


def make_environment(datasets: Path, has_gpu: bool = False) -> dict[str, str]:
    """The environment variables of a job: those of this process, the datasets' folder and, on the CPU, one thread."""
    threads = {} if has_gpu else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **threads, "DETECTRON2_DATASETS": str(datasets)}


class _Progress:
    """Logs every half minute how many steps have ended, and an estimate of the time left."""

    def __init__(self, steps: Sequence[Step], jobs: int) -> None:
        self._steps, self._jobs = steps, jobs
        self._start = self._last_log = time.monotonic()

    def log(self, outcomes: Mapping[str, StepOutcome], running: Mapping[str, _Job]) -> None:
        now = time.monotonic()
        if now - self._last_log < _LOG_SECONDS:
            return
        self._last_log = now
        minutes_run = {name: (now - job.start) / 60 for name, job in running.items()}
        slowdown = self._estimate_slowdown(outcomes)
        unfinished = [
            replace(step, minutes=max(step.minutes * slowdown - minutes_run.get(step.name, 0.0), 0.0))
            for step in self._steps
            if step.name not in outcomes
        ]
        minutes_left = estimate_makespan(unfinished, self._jobs)
        _logger.info(
            "%d of %d steps in %.1f min, about %.0f min left; running: %s",
            *(len(outcomes), len(self._steps), (now - self._start) / 60, minutes_left, ", ".join(minutes_run)),
        )

    def _estimate_slowdown(self, outcomes: Mapping[str, StepOutcome]) -> float:
        """Measured divided by estimated minutes of the finished steps, damped towards 1 while little is finished."""
        done = [step for step in self._steps if step.name in outcomes and outcomes[step.name].state == DONE]
        estimated = sum(step.minutes for step in done)
        measured = sum(outcomes[step.name].seconds for step in done) / 60
        return (measured + _PRIOR_MINUTES) / (estimated + _PRIOR_MINUTES)
