import json
import subprocess
import sys

import pytest
import torch.distributed as dist

from ssql_det.core.distributed import all_gather, barrier, is_main, launch, rank, world_size
from ssql_det.core.errors import UserError

SCRIPT = """
import json, sys
from pathlib import Path
from ssql_det.core.errors import UserError, reporting_errors
from ssql_det.core.distributed import all_gather, barrier, is_main, launch, rank, world_size

def work(folder, mistaken_rank):
    gathered = all_gather({"rank": rank(), "main": is_main(), "text": "ab" * rank()})
    Path(folder, f"{rank()}.json").write_text(json.dumps([world_size(), gathered]))
    if rank() == mistaken_rank:
        raise UserError("this is the mistake")
    barrier()

if __name__ == "__main__":
    with reporting_errors():
        launch(work, sys.argv[1], int(sys.argv[2]), processes=2)
    print("done")
"""
GATHERED = [2, [{"rank": 0, "main": True, "text": ""}, {"rank": 1, "main": False, "text": "ab"}]]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*starter, mistaken_rank):
        command = [*starter, tmp_path / "script.py", tmp_path, str(mistaken_rank)]
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)

    return run


def gathered(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_torchrun_gives_every_rank_what_all_ranks_had(run, tmp_path):
    ended = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", mistaken_rank=-1)
    assert ended.returncode == 0, ended.stderr
    assert gathered(tmp_path) == [GATHERED, GATHERED]


def test_processes_do_the_same_and_a_mistake_in_one_is_a_sentence_and_exit_code_2(run, tmp_path):
    ended = run(mistaken_rank=1)
    assert ended.returncode == 2, ended.stderr
    assert gathered(tmp_path) == [GATHERED, GATHERED]
    assert ended.stderr.count("error: this is the mistake\n") == 1
    assert "Traceback" not in ended.stderr
    assert "done" not in ended.stdout


def test_a_single_process_needs_no_group():
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    thing = object()
    assert all_gather(thing) == [thing]
    barrier()


def test_one_process_is_this_process():
    seen = []
    launch(seen.append, "called", processes=1)
    assert seen == ["called"]


def test_torchrun_with_one_process_is_that_process(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    seen = []
    launch(lambda: seen.append(dist.is_initialized()))
    assert seen == [False]


@pytest.mark.parametrize("processes", [0, -1])
def test_fewer_than_one_process_is_one_sentence(processes):
    with pytest.raises(UserError, match=f"must be 1 or more, got {processes}"):
        launch(print, processes=processes)


@pytest.mark.parametrize(
    ("code", "status", "said"), [(None, 0, ""), (0, 0, ""), ("the disk is full", 1, "the disk is full")]
)
def test_a_rank_that_exits_is_heard(code, status, said, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom ssql_det.core.distributed import launch\n"
        f"def work():\n    sys.exit({code!r})\n"
        "if __name__ == '__main__':\n    launch(work, processes=2)\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert said in done.stderr
