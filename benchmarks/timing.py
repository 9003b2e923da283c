"""Compare two ways of doing a thing on a noisy machine: alternate them, take medians, report the ratio; and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each, run in turns after two rounds of warming up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for run, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            run()
            if turn >= 2:
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def report(what: str, baseline: float, measured: float, bar: float) -> bool:
    """Print one line; whether the ratio keeps the bar."""
    ratio = measured / baseline
    kept = ratio <= bar
    verdict = "kept" if kept else "MISSED"
    print(f"{what}: {measured * 1e3:.2f} ms / {baseline * 1e3:.2f} ms = {ratio:.3f} (bar {bar}, {verdict})")
    return kept


def memory(kind: str, process: int | str = "self") -> int:
    """Bytes of a process, now (``VmRSS``, without files ``RssAnon``) or at most (``VmHWM``); Linux has them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def forget_peak() -> None:
    """Let ``VmHWM`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")
