"""Runs that end before their steps do: no step outlives them, however they end, and no two work in one folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.reproduce.plans import get_states, is_running

from ssql_det.core.errors import UserError
from ssql_det.reproduce import runner

CHILD = (sys.executable, "-m", "ssql_det.cli.child")
LONG = ("make-toy-data", "--scenes", "50000", "--crops", "5", "--workers", "1")
RUN = """
import json, logging, os, sys
from pathlib import Path
from ssql_det.reproduce.runner import run_steps
from ssql_det.reproduce.steps import Step
out, program, steps = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
logging.basicConfig(level="INFO", stream=sys.stderr)
steps = [Step(name, "train", tuple(words), out / name, (), (out / name / "made",), 1.0, 1.0) for name, words in steps]
run_steps(steps, out, 2, program, os.environ)
"""


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _interruptible():
    """A shell's background jobs, and what they start, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def started(fake):
    """Starts a run of two long steps in a process of its own, and waits until both are at work."""
    processes = []

    def start(program, words, are_at_work):
        steps = json.dumps([(name, words(name)) for name in "ab"])
        command = [sys.executable, "-c", RUN, str(fake.out), json.dumps(program), steps]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_interruptible)
        processes.append(process)
        until(lambda: process.poll() is not None or (len(children(process)) == 2 and are_at_work()))
        assert process.poll() is None, process.stderr.read().decode()
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # steps too, where a test failed for that they live on
        process.communicate()


@pytest.fixture
def sleeping(fake, started):
    """Such a run of the program of a few lines."""
    words = [fake.step(name, seconds=60).arguments for name in "ab"]
    return started(fake.program, lambda name: words["ab".index(name)], lambda: len(fake.events) == 2)


def test_a_second_run_in_one_folder_is_refused(fake, sleeping):
    with pytest.raises(UserError, match=r"another process is running in .*out; wait for it, or choose another --out"):
        fake.run([fake.step("c")])
    assert [name for _, name in fake.events] in (["a", "b"], ["b", "a"])
    sleeping.kill()
    sleeping.wait()
    assert get_states(fake.run([fake.step("c")])) == {"c": runner.DONE}


@pytest.mark.parametrize("are_told", [True, False], ids=["a terminal's", "one process's"])
def test_an_interrupt_ends_the_jobs(are_told, fake, sleeping):
    """A terminal's goes to all processes at once."""
    (os.killpg if are_told else os.kill)(sleeping.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in sleeping.communicate(timeout=10)[1]
    assert len(fake.pids) == 2
    assert not any(map(is_running, fake.pids))


def test_a_killed_run_ends_its_jobs_at_once(fake, started):
    out = fake.out
    process = started(
        CHILD, lambda name: [LONG[0], str(out / name), *LONG[1:]], lambda: len(list(out.glob(".*making"))) == 2
    )
    pids = children(process)
    process.kill()
    process.wait()
    time.sleep(1.0)
    assert not any(map(is_running, pids))
    assert get_states(fake.run([fake.step("c")])) == {"c": runner.DONE}


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0])
def test_a_job_ends_when_its_pipe_closes(seconds, tmp_path):
    """While it imports, too."""
    command = [*CHILD, LONG[0], str(tmp_path / "data"), *LONG[1:]]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        time.sleep(seconds)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=10 if seconds == 0 else 1) == -signal.SIGKILL  # Python itself has to start first
    finally:
        process.kill()
        process.wait()


SLOW_TO_EXIT = """
import builtins, time
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(60)
builtins.slow = Slow()
"""


def test_a_finished_job_exits_at_once(tmp_path):
    """However long Python would take to take apart what is in memory, when no thread runs any more."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_EXIT)
    command = [*CHILD, LONG[0], str(tmp_path / "data"), "--scenes", "4", "--crops", "5", "--workers", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    try:
        until((tmp_path / "data/manifest.json").is_file)
        assert process.wait(timeout=5) == 0
    finally:
        process.kill()
        process.communicate()


def test_an_undisturbed_job_ends_as_the_command_does(tmp_path):
    made = subprocess.Popen(
        [*CHILD, *LONG[:1], str(tmp_path / "a"), "--scenes", "4", "--crops", "5"], stdin=subprocess.PIPE
    )
    refused = subprocess.Popen(
        [*CHILD, "make-toy-data", "a", "--scenes", "3"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert made.wait(60) == 0
    assert (tmp_path / "a/manifest.json").is_file()
    assert refused.wait(60) == 2
    assert refused.stderr.read().startswith(b"error: --scenes must be at least 4")
    for process in (made, refused):
        process.communicate()
