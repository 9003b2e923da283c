"""Compare the times of two functions on a noisy machine (alternating runs, medians, ratio), and read memory use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The median seconds of each, in alternating runs after two warm-up rounds."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 2):
        for function, times in zip((first, second), seconds, strict=True):
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


def read_memory(kind: str, process: int | str = "self") -> int:
    """Memory of a process in bytes, on Linux: now (``VmRSS``; ``RssAnon`` without mapped files) or peak (``VmHWM``)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def reset_peak_memory() -> None:
    """Reset ``VmHWM``."""
    Path("/proc/self/clear_refs").write_text("5")
