"""Interrupted runs: no job outlives its run, however that ends, and no two runs use one folder."""

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

pytestmark = pytest.mark.slow

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


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def list_children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _restore_interrupts():
    """A shell's background jobs, and their children, ignore interrupts by default."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start_run(fake):
    """A function that starts a run of two long steps in another process and waits until both are running."""
    processes = []

    def start(program, make_arguments, are_running):
        steps = json.dumps([(name, make_arguments(name)) for name in "ab"])
        command = [sys.executable, "-c", RUN, str(fake.out), json.dumps(program), steps]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_restore_interrupts
        )
        processes.append(process)
        wait_until(lambda: process.poll() is not None or (len(list_children(process)) == 2 and are_running()))
        assert process.poll() is None, process.stderr.read().decode()
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # jobs too, in case they outlived a failed test
        process.communicate()


@pytest.fixture
def sleeping_run(fake, start_run):
    """Such a run, of the fake program."""
    words = [fake.step(name, seconds=60).arguments for name in "ab"]
    return start_run(fake.program, lambda name: words["ab".index(name)], lambda: len(fake.events) == 2)


def test_a_second_run_in_one_folder_is_refused(fake, sleeping_run):
    with pytest.raises(UserError, match=r"another process is running in .*out; wait for it, or choose another --out"):
        fake.run([fake.step("c")])
    assert [name for _, name in fake.events] in (["a", "b"], ["b", "a"])
    sleeping_run.kill()
    sleeping_run.wait()
    assert get_states(fake.run([fake.step("c")])) == {"c": runner.DONE}


@pytest.mark.parametrize("is_group", [True, False], ids=["process group", "one process"])
def test_an_interrupt_ends_the_jobs(is_group, fake, sleeping_run):
    """A terminal sends its interrupt to the whole process group."""
    (os.killpg if is_group else os.kill)(sleeping_run.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in sleeping_run.communicate(timeout=10)[1]
    assert len(fake.pids) == 2
    assert not any(map(is_running, fake.pids))


def test_a_killed_run_ends_its_jobs_at_once(fake, start_run):
    out = fake.out
    process = start_run(
        CHILD, lambda name: [LONG[0], str(out / name), *LONG[1:]], lambda: len(list(out.glob(".*making"))) == 2
    )
    pids = list_children(process)
    process.kill()
    process.wait()
    time.sleep(1.0)
    assert not any(map(is_running, pids))
    assert get_states(fake.run([fake.step("c")])) == {"c": runner.DONE}


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0])
def test_a_job_ends_when_its_pipe_closes(seconds, tmp_path):
    """Even while it imports."""
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
    """However long Python would take to free its memory."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_TO_EXIT)
    command = [*CHILD, LONG[0], str(tmp_path / "data"), "--scenes", "4", "--crops", "5", "--workers", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    try:
        wait_until((tmp_path / "data/manifest.json").is_file)
        assert process.wait(timeout=5) == 0
    finally:
        process.kill()
        process.communicate()


def test_an_undisturbed_job_ends_as_the_command_does(tmp_path):
    valid = subprocess.Popen(
        [*CHILD, *LONG[:1], str(tmp_path / "a"), "--scenes", "4", "--crops", "5"], stdin=subprocess.PIPE
    )
    invalid = subprocess.Popen(
        [*CHILD, "make-toy-data", "a", "--scenes", "3"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert valid.wait(60) == 0
    assert (tmp_path / "a/manifest.json").is_file()
    assert invalid.wait(60) == 2
    assert invalid.stderr.read().startswith(b"error: --scenes must be at least 4")
    for process in (valid, invalid):
        process.communicate()
