"""``benchmarks/timing.py`` runs functions in other processes, whatever libraries print there."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ssql_det

pytestmark = pytest.mark.slow

BENCHMARKS = Path(ssql_det.__file__).parents[1] / "benchmarks"
SCRIPT = """
import sys
from timing import run_script, serve

def prepare(factor):
    print("a library's line")
    count = 0

    def multiply():
        nonlocal count
        count += 1
        print("a line without an end", end="")
        return {"product": int(factor) * count}

    serve({"multiply": multiply, "fail": sys.exit})

run_script(lambda: sys.argv[1:] == ["kept"], prepare)
"""


@pytest.fixture
def timing(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("timing")


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.fspath(BENCHMARKS))
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return os.fspath(path)


def test_children_answer_one_after_the_other(timing, script):
    children = [timing.Child(script, factor) for factor in ("2", "3")]
    products = [child.run("multiply")["product"] for child in children * 2]
    assert products == [2, 3, 4, 6]
    for child in children:
        child.close()
        assert child.process.returncode == 0


def test_a_child_that_ends_is_named(timing, script):
    child = timing.Child(script, "2")
    with pytest.raises(SystemExit, match=r"failed: .*script\.py --serve 2"):
        child.run("fail")
    child.close()


def test_the_exit_code_says_whether_limits_are_kept(timing, script):
    for argument, code in (("kept", 0), ("exceeded", 1)):
        assert subprocess.run([sys.executable, script, argument], check=False).returncode == code
