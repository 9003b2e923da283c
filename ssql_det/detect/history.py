"""The latest scalars of a training: with them a resumed run has the medians of the run that was not stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssql_det.d2 import EventStorage

WINDOW = 20  # iterations that a median is of, and between log lines
_BY_THE_CLOCK = ("time", "eta_seconds")  # left out: equal runs have equal checkpoints, to the byte


def latest(storage: EventStorage) -> dict[str, dict[str, Any]]:
    """What was put in the last ``WINDOW`` iterations, by name, as plain values.

    >>> latest(storage)["total_loss"]
    {'is_noisy': True, 'values': [(2.41, 480), ..., (2.12, 499)]}
    """
    is_noisy, first = storage.smoothing_hints(), storage.iter - WINDOW + 1
    return {
        name: {
            "is_noisy": is_noisy[name],
            "values": [(value, int(iteration)) for value, iteration in history.values() if iteration >= first],
        }
        for name, history in storage.histories().items()
        if name not in _BY_THE_CLOCK
    }


def put_back(storage: EventStorage, scalars: Mapping[str, Mapping[str, Any]]) -> None:
    """Into a storage that is new."""
    for name, kept in scalars.items():
        for value, iteration in kept["values"]:
            storage.put_scalar(name, value, smoothing_hint=kept["is_noisy"], cur_iter=iteration)


def medians(storage: EventStorage) -> dict[str, float]:
    """Of what is noisy over the last ``WINDOW`` iterations; the last value of what is not."""
    return {name: value for name, (value, _) in storage.latest_with_smoothing_hint(WINDOW).items()}
