"""Ranks notice that another one is gone although no connection was closed: its machine is down, or it is frozen.

Each rank counts up in the group's store, and reads the count of the next rank. Where that stands still for
``SSQL_DET_TIMEOUT`` seconds (300 by default), this process ends with one sentence; otherwise it would wait for the next
collective operation to time out, half an hour.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from ssql_det.core.errors import EXIT_BAD_INPUT, UserError

TIMEOUT_VARIABLE = "SSQL_DET_TIMEOUT"
_DEFAULT_TIMEOUT = 300.0  # seconds
_MAX_MISSED_BEATS = 60  # in the time-out. It is counted in beats, so that after a machine's sleep nobody seems gone.


def read_timeout() -> float:
    """How many seconds a rank waits for another one that does not answer."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(_DEFAULT_TIMEOUT)
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < threading.TIMEOUT_MAX:
            return seconds
    raise UserError(f"the environment variable {TIMEOUT_VARIABLE} must be a number of seconds above 0, got {text!r}")


@contextmanager
def watching_ranks() -> Iterator[None]:
    """Inside, count up and watch the next rank. To be entered and left by every rank of a process group."""
    ended, pulse, period = threading.Event(), _Pulse(), read_timeout() / _MAX_MISSED_BEATS
    threads = [threading.Thread(target=each, args=(ended, pulse, period), daemon=True) for each in (_beat, _watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(period)


@dataclass
class _Pulse:
    """What one thread writes and the other reads, which must not wait for an answer itself."""

    answers: int = 0  # of the store
    next_rank: str = ""  # its number and, once it counts, its host
    next_count: int = 0


def _beat(ended: threading.Event, pulse: _Pulse, period: float) -> None:
    address, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), dist.get_rank()
    next_rank = (rank + 1) % dist.get_world_size()
    pulse.next_rank, host = f"rank {next_rank}", ""
    try:
        # A connection of its own: that of the process group is busy while an operation waits.
        store = dist.TCPStore(  # type: ignore[attr-defined] # public, but not in __all__
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(hours=1)
        )
        store.set(f"ssql_det host {rank}", socket.gethostname())
        while not ended.wait(period):
            store.add(f"ssql_det count {rank}", 1)
            pulse.next_count = store.add(f"ssql_det count {next_rank}", 0)
            if pulse.next_count and not host:  # a rank sets its host before it counts
                host = store.get(f"ssql_det host {next_rank}").decode()
                pulse.next_rank = f"rank {next_rank} on {host}"
            pulse.answers += 1
    except RuntimeError:  # the connection was closed: the group has ended, or its operations fail and say so
        ended.set()


def _watch(ended: threading.Event, pulse: _Pulse, period: float) -> None:
    store = f"the store of the processes at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    counts, missed = [-1, -1], [0, 0]
    while not ended.wait(period):
        current = [pulse.answers, pulse.next_count]  # without the store no other rank can be judged: it comes first
        missed = [beats + 1 if now == before else 0 for beats, now, before in zip(missed, current, counts, strict=True)]
        counts = current
        for name, beats in zip((store, pulse.next_rank), missed, strict=True):
            if beats > _MAX_MISSED_BEATS:
                end = "its process or machine is frozen or cannot be reached; start all again with --resume"
                print(f"error: {name} has not answered for {read_timeout():g} s: {end}", file=sys.stderr, flush=True)
                os._exit(EXIT_BAD_INPUT)
