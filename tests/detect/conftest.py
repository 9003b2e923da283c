import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssql_det import d2


@pytest.fixture(autouse=True)
def one_thread():
    """Two would wait for each other wherever a core is busy, and one gives the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch):
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)


@pytest.fixture(scope="module", autouse=True)
def toy_data_in_place(toy):
    """The toy names, registered again under the folder that was just made."""
    names = [name for name in d2.DatasetCatalog.list() if name.startswith("toy_")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(toy))
        for name in names:
            d2.DatasetCatalog.remove(name)
            d2.MetadataCatalog.remove(name)
        d2.register_toy_data()
        yield


@pytest.fixture(scope="session")
def in_process(toy):
    """Runs a command of ssql-det in a process of its own, which may be killed; its exit status, -9 for a kill."""
    env = {**os.environ, "DETECTRON2_DATASETS": str(toy), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("process_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )

    def run(arguments, log, **kill):
        server.stdin.write(json.dumps({"arguments": arguments, "log": str(log), **kill}) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait()
