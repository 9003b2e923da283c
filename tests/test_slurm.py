"""``tools/slurm.sh`` as SLURM runs it: two nodes of one process each, which here are two groups on one machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.detect.training_runs import read_final, read_run, train_arguments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SRUN = '#!/bin/bash\n"$@" &\n"$@" &\nwait -n && wait -n\n'  # what srun does: the same on every node
SCONTROL = "#!/bin/bash\necho localhost\necho elsewhere\n"


def job(toy, folder, *arguments):
    """Run the script with SLURM's variables and programs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, script in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DETECTRON2_DATASETS": str(toy),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "PORT": str(port),
    }
    command = [str(ROOT / "tools/slurm.sh"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_two_nodes_train_one_detector_as_one_machine_does(toy, in_process, tmp_path):
    run, other, keys = tmp_path / "run", tmp_path / "other", {"SOLVER__MAX_ITER": 3, "SOLVER__STEPS": ()}
    _, *arguments = train_arguments(run, "--resume", **keys)
    trained = job(toy, tmp_path, "train_net.py", *arguments)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("wrote ") == 1
    assert len(read_final(run)["rng"]) == 2
    ended = in_process(train_arguments(other, **keys), tmp_path / "log", processes=2, seconds=300)
    assert ended["status"] == 0, (tmp_path / "log").read_text()
    assert read_run(run) == read_run(other)
