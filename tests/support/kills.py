"""kill -9, at named events of a command, and at moments that nobody chose."""

import os
import random
import time
from contextlib import suppress

_MOST = 6  # in one run: on a machine that has become slower it would never end


def kill_until_done(in_process, arguments, log, seconds, **how):
    """The moments at which a command was killed before it ended by itself; whole it takes ``seconds``."""
    killed = []
    while len(killed) < _MOST:
        moment = random.SystemRandom().uniform(0.1, 0.8) * seconds
        ended = in_process(arguments, log, seconds=moment, **how)
        if ended["status"] == 0:
            return killed
        assert ended["status"] == -9, log.read_text()
        killed.append(moment)
    ended = in_process(arguments, log, **how)
    assert ended["status"] == 0, log.read_text()
    return killed


def kill_at(process, event):
    """Kill a process as soon as something has happened; whether it was still running."""
    while process.poll() is None and not event():
        time.sleep(0.0005)
    was_running = process.poll() is None
    process.kill()
    process.wait(timeout=5)
    process.stdout.close()  # not read to its end: what the process has started may still have the other one
    return was_running


def after(seconds):
    """The event that so much time has passed since it was first waited for."""
    begun = []

    def has_happened():
        begun.append(time.monotonic())
        return begun[-1] - begun[0] > seconds

    return has_happened


def written(path, times):
    """The event that a file has been put in place so many times."""
    seen = set()

    def has_happened():
        with suppress(FileNotFoundError):
            found = os.stat(path)  # each is a file of its own, renamed; its number may come round again
            seen.add((found.st_ino, found.st_mtime_ns))
        return len(seen) >= times

    return has_happened


def being_written(path):
    """The event that a new content of a file is on its way, beside it."""
    return lambda: any(path.parent.glob(f".{path.name}.*.tmp"))
