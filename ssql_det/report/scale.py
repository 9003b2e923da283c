"""From values to places on an axis: round ticks that embrace the values, and a linear map between the outer two.

>>> ticks = round_ticks(41.2, 48.8)
>>> ticks, labels(ticks)
((40.0, 42.0, 44.0, 46.0, 48.0, 50.0), ('40', '42', '44', '46', '48', '50'))
>>> Scale(40.0, 50.0, start=200.0, end=0.0).place(45.0)
100.0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_MOST = 6


@dataclass(frozen=True)
class Scale:
    """``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def round_ticks(low: float, high: float) -> tuple[float, ...]:
    """Four to six, a step of 1, 2, 2.5 or 5 times a power of ten apart. Equal values lie in the middle of theirs."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:
        room = size / 10 or 1.0
        low, high = low - room, high + room
    power = math.floor(math.log10((high - low) / _MOST))
    for step in (times * 10.0 ** (power + more) for more in (0, 1) for times in (1.0, 2.0, 2.5, 5.0)):
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first < _MOST:  # and at least 3: the step before, at least half of this, took 6 or more
            return tuple(round(count * step, 12 - power) for count in range(first, last + 1))
    raise AssertionError(f"no step from {low} to {high}")


def labels(ticks: Sequence[float]) -> tuple[str, ...]:
    """All with the digits that the finest of them needs."""
    if not ticks:
        return ()
    if max(map(abs, ticks)) >= 1e6 or ticks[1] - ticks[0] < 1e-4:
        return tuple(f"{tick:.10g}" for tick in ticks)
    digits = max(len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return tuple(f"{tick + 0.0:.{digits}f}" for tick in ticks)
