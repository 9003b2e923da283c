"""Compare the times of two functions on a noisy machine (alternating runs, medians, ratio), also of functions in other
processes, and read memory use."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ssql_det.core.function_process import FunctionProcess, answer, read_memory, serve
else:  # not by the package: a child may have another checkout of it, or none
    _path = Path(__file__).parents[1] / "ssql_det/core/function_process.py"
    _spec = importlib.util.spec_from_file_location(_path.stem, _path)
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    FunctionProcess, answer, read_memory, serve = (
        getattr(_module, name) for name in ("FunctionProcess", "answer", "read_memory", "serve")
    )

__all__ = ["Child", "alternate", "answer", "read_memory", "report", "reset_peak_memory", "run_script", "serve"]

_SERVE = "--serve"


def alternate(
    first: Callable[[], object], second: Callable[[], object], rounds: int, pause: float = 0.0
) -> tuple[float, float]:
    """The median seconds of each, in alternating runs after two warm-up rounds; ``pause`` seconds before each run."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 2):
        for function, times in zip((first, second), seconds, strict=True):
            time.sleep(pause)
            start = time.perf_counter()
            function()
            if index >= 2:
                times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def report(name: str, baseline: float, measured: float, limit: float) -> bool:
    """Print one line; returns whether the ratio is within the limit."""
    ratio = measured / baseline
    is_kept = ratio <= limit
    verdict = "kept" if is_kept else "EXCEEDED"
    print(f"{name}: {measured * 1e3:.2f} ms / {baseline * 1e3:.2f} ms = {ratio:.3f} (limit {limit}, {verdict})")
    return is_kept


class Child(FunctionProcess):
    """Functions in a process of its own, which runs one at a time and in between waits.

    It runs the same script with other arguments, for which :func:`run_script` calls the script's second function; that
    prepares what is to be measured and ends with :func:`serve`. It may have another interpreter, and ends with its
    parent.
    """

    def __init__(self, script: str, *arguments: str, python: str = sys.executable, **environment: str) -> None:
        """Start it and wait until it is ready; ``environment`` has more variables for it."""
        super().__init__([python, script, _SERVE, *arguments], environment)

    def report_end(self) -> NoReturn:
        raise SystemExit(f"failed: {' '.join(self.process.args)}")


def run_script(main: Callable[[], bool], prepare: Callable[..., None]) -> None:
    """Run a benchmark's ``main``, whose result says whether all limits are kept and becomes the exit code, or, in a
    :class:`Child`, ``prepare`` with the child's arguments."""
    if sys.argv[1:2] == [_SERVE]:
        prepare(*sys.argv[2:])
    else:
        raise SystemExit(0 if main() else 1)


def reset_peak_memory() -> None:
    """Reset ``VmHWM``."""
    Path("/proc/self/clear_refs").write_text("5")
