"""The program starts, and detections are read, drawn and written, where only NumPy and Pillow are installed."""

import subprocess
import sys

import pytest

RUN = """
import importlib, pkgutil, sys

class Blocking:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in {*sys.stdlib_module_names, "ssql_det", "numpy", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocking())
import ssql_det.cli, ssql_det.images
from ssql_det.cli.main import main

for package in (ssql_det.cli, ssql_det.images):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_program_starts_with_numpy_and_pillow_alone():
    done = subprocess.run([sys.executable, "-c", RUN, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: ssql-det" in done.stdout
