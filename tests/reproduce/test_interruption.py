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
from support.kills import is_alive, list_descendants, wait_until_ended
from support.reproduce.plans import get_states, make_step

from ssql_det.cli.main import main
from ssql_det.core.errors import UserError
from ssql_det.reproduce import runner
from ssql_det.reproduce.runner import run_steps

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
SHORT = ("make-toy-data", "--scenes", 4, "--crops", 5, "--workers", 1)
LONG = ("make-toy-data", "--scenes", "50000", "--crops", "5", "--workers", "1")
RUN = """
import functools, json, logging, multiprocessing, os, sys
from pathlib import Path
from ssql_det.cli.main import main
from ssql_det.reproduce.runner import run_steps
from support.reproduce.plans import make_step, run_script

out, script, steps = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
logging.basicConfig(level="INFO", stream=sys.stderr)
if script:
    multiprocessing.set_forkserver_preload([])  # it needs no libraries
steps = [make_step(name, out / name, arguments=words) for name, words in steps]
run_steps(steps, out, 2, functools.partial(run_script, script) if script else main, os.environ)
"""


EXIT = 'sys.exit(task["exit_code"])\n'
SLOW_TO_FREE = """
import builtins
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(60)
builtins.slow = Slow()
"""


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def _restore_interrupts():
    """A shell's background jobs, and their children, ignore interrupts by default."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start_run(fake):
    """A function that starts a run of two long steps in another process and waits until both are running.

    They run a script, or ``ssql-det`` itself.
    """
    processes = []

    def start(script, make_arguments, are_running):
        steps = json.dumps([(name, make_arguments(name)) for name in "ab"])
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(fake.out), script, steps],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_restore_interrupts,
        )
        processes.append(process)
        wait_until(lambda: process.poll() is not None or are_running())
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
    return start_run(str(fake.script), lambda name: words["ab".index(name)], lambda: len(fake.events) == 2)


def test_a_second_run_in_one_folder_is_refused(fake, sleeping_run):
    with pytest.raises(UserError, match=r"out is in use by process \d+ on .*; wait for it, or choose another folder"):
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
    assert not any(map(is_alive, fake.pids))


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_killed_run_ends_its_jobs_at_once(has_begun, fake, start_run):
    """Even while they import."""
    logs, made = fake.out / "logs", fake.out
    process = start_run(
        "",
        lambda name: [LONG[0], str(fake.out / name), *LONG[1:]],
        lambda: len(list(made.glob(".*making") if has_begun else logs.glob("*"))) == 2,
    )
    pids = list_descendants(process.pid)
    assert len(pids) >= 2
    process.kill()
    process.wait()
    wait_until_ended(pids, seconds=5)  # on a loaded machine
    assert get_states(fake.run([fake.step("c")])) == {"c": runner.DONE}


def test_a_finished_job_exits_at_once(fake):
    """However long Python would take to free its memory."""
    fake.script.write_text(f"{fake.script.read_text()[: -len(EXIT)]}{SLOW_TO_FREE}{EXIT}")
    start = time.monotonic()
    assert get_states(fake.run([fake.step("a")])) == {"a": runner.DONE}
    assert time.monotonic() - start < 50


def test_an_undisturbed_job_ends_as_the_command_does(tmp_path):
    valid = make_step("valid", tmp_path / "a", outputs=("manifest.json",), arguments=(*SHORT, tmp_path / "a"))
    invalid = make_step("invalid", tmp_path / "b", arguments=(*SHORT, tmp_path / "b", "--scenes", 3))
    outcomes = run_steps([valid, invalid], tmp_path, 2, main, os.environ)
    assert get_states(outcomes) == {"valid": runner.DONE, "invalid": runner.FAILED}
    assert outcomes["invalid"].reason.startswith("--scenes must be at least 4")
