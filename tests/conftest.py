import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data


@pytest.fixture(scope="module")
def one_thread():
    """Two would wait for each other wherever a core is busy, and one gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def logging_as_it_was(monkeypatch):
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A small data set, made once."""
    return make_toy_data(
        tmp_path_factory.mktemp("toy") / "data", ToyDataSettings(scenes=60, crops=60, seed=6), workers=2
    )


@pytest.fixture(scope="session")
def in_process(toy):
    """Runs a command of ssql-det in a process of its own or in several, which may be killed; see ``process_server``."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"DETECTRON2_DATASETS": str(toy), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    server = subprocess.Popen(
        [sys.executable, "-m", "support.process_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )

    def run(arguments, log, **how):
        server.stdin.write(json.dumps({"arguments": arguments, "log": log, **how}, default=str) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait()


@pytest.fixture
def small_disk():
    """A function that leaves no file room for more than 64 KiB, until the test is over."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
