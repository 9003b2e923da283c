"""Temporary files of a command and its child processes: in one folder, which nothing outlives."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, tempfile, time
from ssql_det.core.errors import raising_on_termination, reporting_errors
from ssql_det.core.processes import CONTEXT, make_child

def work(ready, seconds):
    tempfile.mkstemp()
    open(ready, "w").close()
    time.sleep(seconds)

if __name__ == "__main__":
    CONTEXT.set_forkserver_preload([])
    with raising_on_termination(), reporting_errors():
        child = make_child(work, sys.argv[1], float(sys.argv[2]), environment=os.environ)
        child.start()
        try:
            child.join()
        finally:
            child.terminate()
"""


@pytest.fixture
def files():
    """A folder for temporary files whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
def test_temporary_files_are_in_one_folder_that_is_deleted(files, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ready = tmp_path / "ready"

    def run(seconds, number=None):
        command = [sys.executable, tmp_path / "script.py", ready, str(seconds)]
        process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(files)})
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.01)
        (folder,) = files.glob(f"ssql-*-{process.pid}-*")
        assert sum(path.name.startswith("tmp") for path in folder.iterdir()) == 1
        if number:
            process.send_signal(number)
        ready.unlink()
        return process.wait(timeout=30)

    for number, status in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        assert run(60, number) == status
        assert not list(files.iterdir())
    assert run(60, signal.SIGKILL) == -9
    assert len(list(files.iterdir())) == 1
    assert run(0.5) == 0
    assert not list(files.iterdir())
