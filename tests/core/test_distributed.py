import json
import subprocess
import sys

import pytest
import torch.distributed as dist

from ssql_det.core.distributed import all_gather, barrier, is_main, launch, rank, world_size
from ssql_det.core.errors import REPORT_LINE, UserError

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
from pathlib import Path
from ssql_det.core.errors import UserError, reporting_errors
from ssql_det.core.distributed import all_gather, barrier, is_main, launch, rank, world_size

def main_func(folder, failing_rank):
    gathered = all_gather({"rank": rank(), "main": is_main(), "text": "ab" * rank()})
    Path(folder, f"{rank()}.json").write_text(json.dumps([world_size(), gathered]))
    if rank() == failing_rank:
        raise UserError("this is the error")
    barrier()

if __name__ == "__main__":
    with reporting_errors():
        launch(main_func, sys.argv[1], int(sys.argv[2]), processes=2)
    print("done")
"""
GATHERED = [2, [{"rank": 0, "main": True, "text": ""}, {"rank": 1, "main": False, "text": "ab"}]]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*launcher, failing_rank):
        command = [*launcher, tmp_path / "script.py", tmp_path, str(failing_rank)]
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)

    return run


def read_gathered(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_under_torchrun_every_rank_gathers_all_values(run, tmp_path):
    result = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", failing_rank=-1)
    assert result.returncode == 0, result.stderr
    assert read_gathered(tmp_path) == [GATHERED, GATHERED]


def test_started_processes_gather_too_and_an_error_of_one_is_one_sentence_and_exit_code_2(run, tmp_path):
    result = run(failing_rank=1)
    assert result.returncode == 2, result.stderr
    assert read_gathered(tmp_path) == [GATHERED, GATHERED]
    assert result.stderr.count("error: this is the error\n") == 1
    assert "Traceback" not in result.stderr
    assert "done" not in result.stdout


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


@pytest.mark.parametrize(
    ("code", "status", "message"), [(None, 0, ""), (0, 0, ""), ("the disk is full", 1, "the disk is full")]
)
def test_the_exit_code_of_a_rank_is_kept(code, status, message, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom ssql_det.core.distributed import launch\n"
        f"def main_func():\n    sys.exit({code!r})\n"
        "if __name__ == '__main__':\n    launch(main_func, processes=2)\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert result.returncode == status
    assert message in result.stderr


@pytest.mark.parametrize("ranks", ["(1,)", "(0, 1)"])
def test_a_bug_in_a_rank_is_one_traceback_and_exit_code_1(ranks, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from ssql_det.core.distributed import barrier, launch, rank\n"
        "from ssql_det.core.errors import reporting_errors\n"
        f"def main_func():\n    if rank() in {ranks}:\n        raise KeyError('planted')\n    barrier()\n"
        "if __name__ == '__main__':\n    with reporting_errors():\n        launch(main_func, processes=2)\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-2:] == ["KeyError: 'planted'", REPORT_LINE]
    assert result.stderr.count(REPORT_LINE) == 1
