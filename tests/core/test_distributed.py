import json
import re
import subprocess
import sys

import pytest
import torch.distributed as dist

from ssql_det.core.distributed import all_gather, barrier, is_main, rank, world_size
from ssql_det.core.errors import REPORT_LINE, UserError
from ssql_det.core.launch import launch

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, sys
from pathlib import Path
from ssql_det.core.errors import UserError, reporting_errors
from ssql_det.core.distributed import all_gather, barrier, is_main, rank, world_size
from ssql_det.core.launch import launch
from ssql_det.core.processes import CONTEXT

def gather(folder, failing_rank):
    gathered = all_gather({"rank": rank(), "main": is_main(), "text": "ab" * rank()})
    Path(folder, f"{rank()}.json").write_text(json.dumps([world_size(), gathered]))
    if rank() == failing_rank:
        raise UserError("this is the error")
    barrier()

def fail(ranks):
    if rank() in ranks:
        raise KeyError("planted")
    barrier()

def print_on_main_to_a_full_disk():
    if is_main():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        print("lost")

def start(*work):
    try:
        with reporting_errors():
            launch(*work, processes=2)
        code = 0
    except SystemExit as stop:
        code = stop.code
    print(f"[exit code {code}]", file=sys.stderr, flush=True)

if __name__ == "__main__":
    CONTEXT.set_forkserver_preload(["torch"])
    if "RANK" in os.environ:
        launch(gather, sys.argv[1], -1)
    else:
        start(gather, sys.argv[1], 1)
        for code in (None, 0, "the disk is full"):
            start(sys.exit, code)
        for ranks in ((1,), (0, 1)):
            start(fail, ranks)
        start(print_on_main_to_a_full_disk)
"""
GATHERED = [2, [{"rank": 0, "main": True, "text": ""}, {"rank": 1, "main": False, "text": "ab"}]]


def run(folder, *launcher):
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, *launcher, folder / "script.py", folder]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def read_gathered(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_under_torchrun_every_rank_gathers_all_values(tmp_path):
    result = run(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert result.returncode == 0, result.stderr
    assert read_gathered(tmp_path) == [GATHERED, GATHERED]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder, and what each of the script's launches wrote to stderr with its exit code."""
    folder = tmp_path_factory.mktemp("started")
    result = run(folder)
    ends = re.findall(r"(.*?)\[exit code (.*?)\]\n", result.stderr, re.DOTALL)
    assert (result.returncode, len(ends)) == (0, 7), result.stderr
    return folder, [(said, int(code)) for said, code in ends]


def test_started_processes_gather_too_and_an_error_of_one_is_one_sentence_and_exit_code_2(started):
    folder, ((said, code), *_) = started
    assert code == 2, said
    assert read_gathered(folder) == [GATHERED, GATHERED]
    assert said.count("error: this is the error\n") == 1
    assert "Traceback" not in said


def test_the_exit_code_of_a_rank_is_kept(started):
    (_, none), (_, zero), (said, text) = started[1][1:4]
    assert (none, zero, text) == (0, 0, 1)
    assert "the disk is full" in said


def test_a_bug_in_one_or_all_ranks_is_one_traceback_and_exit_code_1(started):
    for said, code in started[1][4:6]:
        assert code == 1
        assert said.splitlines()[-2:] == ["KeyError: 'planted'", REPORT_LINE]
        assert said.count(REPORT_LINE) == 1


def test_a_rank_reports_what_it_could_not_print(started):
    said, code = started[1][6]
    assert code == 2
    assert said.startswith("error: could not write to stdout: No space left on device; ")


def test_a_single_process_needs_no_group():
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    value = object()
    assert all_gather(value) == [value]
    barrier()


def test_a_single_process_runs_in_this_one():
    calls = []
    launch(calls.append, "called", processes=1)
    assert calls == ["called"]


def test_torchrun_with_one_process_makes_no_group(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    has_group = []
    launch(lambda: has_group.append(dist.is_initialized()))
    assert has_group == [False]


@pytest.mark.parametrize("processes", [0, -1])
def test_fewer_than_one_process_is_one_sentence(processes):
    with pytest.raises(UserError, match=f"must be 1 or more, got {processes}"):
        launch(print, processes=processes)
