"""``tools/slurm.sh`` as SLURM runs it: two nodes of one process each, which here are two groups on one machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.detect.configs import C4, CONFIGS, tiny_overrides

from ssql_det.core import rows
from ssql_det.core.unpickler import read_tensors

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


def test_two_nodes_train_one_detector_and_sweep_it(toy, tmp_path):
    run, config = tmp_path / "run", ["--config-file", str(CONFIGS / C4)]
    keys = {"SOLVER__MAX_ITER": 3, "SOLVER__STEPS": ()}
    trained = job(toy, tmp_path, "train_net.py", *config, "--resume", *tiny_overrides(OUTPUT_DIR=run, **keys))
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("wrote ") == 1
    assert len(read_tensors(run / "model_final.pth")["rng"]) == 2
    weights = {"MODEL__WEIGHTS": run / "model_final.pth", "OUTPUT_DIR": tmp_path / "sweep"}
    swept = job(toy, tmp_path, "eval_quantized.py", *config, "--bits", "8", *tiny_overrides(**weights, **keys))
    assert swept.returncode == 0, swept.stderr
    (row,) = rows.read_rows(tmp_path / "sweep/results.jsonl")
    assert row.bits == "8w8a"
