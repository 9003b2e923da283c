"""Compare the times of two functions on a noisy machine (alternating runs, medians, ratio), also of functions in other
processes, and read memory use."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SERVE = "--serve"
_ANSWER = "answer to the benchmark:"  # in the lines that a child writes for its parent; libraries may write others


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


class Child:
    """Functions in a process of its own, which runs one at a time and in between waits.

    It runs the same script with other arguments, for which :func:`run_script` calls the script's second function; that
    prepares what is to be measured and ends with :func:`serve`. It may have another interpreter, and ends with its
    parent.
    """

    def __init__(self, script: str, *arguments: str, python: str = sys.executable, **environment: str) -> None:
        """Start it and wait until it is ready; ``environment`` has more variables for it."""
        pipe = subprocess.PIPE
        command = [python, script, _SERVE, *arguments]
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=pipe, stdout=pipe, text=True, bufsize=1
        )
        self._read_answer()

    def run(self, name: str) -> Any:
        """Run a function there, and return what it returns."""
        self.process.stdin.write(f"{name}\n")
        return self._read_answer()

    def _read_answer(self) -> Any:
        for line in self.process.stdout:
            _, is_answer, text = line.partition(_ANSWER)
            if is_answer:
                return json.loads(text)
        raise SystemExit(f"failed: {' '.join(self.process.args)}")

    def close(self) -> None:
        self.process.communicate()


def run_script(main: Callable[[], bool], prepare: Callable[..., None]) -> None:
    """Run a benchmark's ``main``, whose result says whether all limits are kept and becomes the exit code, or, in a
    :class:`Child`, ``prepare`` with the child's arguments."""
    if sys.argv[1:2] == [_SERVE]:
        prepare(*sys.argv[2:])
    else:
        raise SystemExit(0 if main() else 1)


def serve(functions: Mapping[str, Callable[[], object]]) -> None:
    """In a child: run the functions that the parent asks for. What they return must fit in JSON."""
    name = answer(None)
    while True:
        name = answer(functions[name]())


def answer(value: object) -> str:
    """In a child: give the parent an answer, at first that it is ready, and wait for the name of the next function."""
    print(_ANSWER, json.dumps(value), flush=True)
    name = sys.stdin.readline().rstrip("\n")
    if not name:  # the parent has closed the pipe, or has ended
        raise SystemExit
    return name


def read_memory(kind: str, process: int | str = "self") -> int:
    """Memory of a process in bytes, on Linux: now (``VmRSS``; ``RssAnon`` without mapped files) or peak (``VmHWM``)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def reset_peak_memory() -> None:
    """Reset ``VmHWM``."""
    Path("/proc/self/clear_refs").write_text("5")
