"""kill -9, at named events of a command, and at moments that nobody chose."""

import itertools
import random
import time
from pathlib import Path

_MOST = 6  # in one run: on a machine that has become slower it would never end


def kill_until_done(in_process, arguments, log, seconds):
    """The moments at which a command was killed before it ended by itself; whole it takes ``seconds``."""
    killed = []
    while len(killed) < _MOST:
        moment = random.SystemRandom().uniform(0.1, 0.8) * seconds
        ended = in_process(arguments, log, seconds=moment)
        if ended["status"] == 0:
            return killed
        assert ended["status"] == -9, log.read_text()
        killed.append(moment)
    run_whole(in_process, arguments, log)
    return killed


def run_whole(in_process, arguments, log):
    """How many seconds a command takes that nobody kills."""
    ended = in_process(arguments, log)
    assert ended["status"] == 0, log.read_text()
    return ended["seconds"]


def repeat_until_killed(in_process, make_arguments, folder, seconds, count):
    """Run a command in new folders, with kills, until there were ``count`` of them; yield each folder and the moments
    of all kills. ``make_arguments`` takes the folder; whole the command takes ``seconds``."""
    killed = []
    for attempt in itertools.count():
        out = folder / f"attempt {attempt}"
        killed += kill_until_done(in_process, make_arguments(out), folder / "log", seconds)
        yield out, killed
        if len(killed) >= count:
            return


def read_pids(file):
    return [int(pid) for pid in file.read_text().split()]


def is_alive(pid):
    """A process that ended and that nobody waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ended(pids, seconds=10):
    pids, end = list(pids), time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, "a process outlived the one that started it"
        time.sleep(0.05)


def list_children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def list_descendants(pid):
    """Children, their children, and so on."""
    return [each for child in list_children(pid) for each in (child, *list_descendants(child))]
