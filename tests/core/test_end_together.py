"""Whatever ends the process that has started ranks, or one of them, ends all."""

import signal

import pytest
from support.kills import read_pids, wait_until_ended


@pytest.mark.parametrize(
    ("number", "to", "place", "status"),
    [
        (signal.SIGTERM, "parent", "background", 143),
        (signal.SIGHUP, "parent", "background", 129),
        (signal.SIGKILL, "parent", "background", -9),
        (signal.SIGINT, "parent", "foreground", 130),
        (signal.SIGTERM, "rank", "foreground", 143),
        (signal.SIGKILL, "rank", "foreground", 2),
    ],
)
def test_ranks_end_with_whoever_ends(number, to, place, status, in_process, tmp_path):
    pids, log = tmp_path / "pids", tmp_path / "log"
    how = {"file": str(pids), "lines": 2, "signal": number} | ({"to_the_last": True} if to == "rank" else {})
    ended = in_process([str(pids), place == "background"], log, work="support.core.sleeping_ranks:start", **how)
    assert ended["status"] == status, log.read_text()
    wait_until_ended(read_pids(pids))
