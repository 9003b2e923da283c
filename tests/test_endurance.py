"""``benchmarks/endurance.py`` measures the memory and the open files of another process."""

import importlib
import sys
from pathlib import Path

import pytest

import ssql_det

pytestmark = pytest.mark.slow

GROWING = """
import sys, time
held = []
for step in range(20):
    held.append((bytearray({memory}), open(sys.argv[0]) if {leaks} else None))
    with open(sys.argv[1], "a") as metrics:
        metrics.write("a line\\n")
    time.sleep(0.05)
"""


@pytest.fixture
def endurance(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(ssql_det.__file__).parents[1] / "benchmarks"))
    return importlib.import_module("endurance")


@pytest.mark.parametrize(("memory", "leaks"), [(1 << 20, True), (0, False)])
def test_growing_memory_and_open_files_are_measured(memory, leaks, endurance, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(GROWING.format(memory=memory, leaks=leaks))
    samples = endurance.sample_process([sys.executable, str(program), str(tmp_path / "metrics")], tmp_path / "metrics")
    assert len(samples) == 20
    (first, _), (_, last) = endurance.split_first_and_last(samples)
    assert (last.memory > 1.2 * first.memory) == leaks
    assert (last.files > first.files + 5) == leaks


def test_a_failing_command_ends_the_benchmark(endurance, tmp_path):
    with pytest.raises(SystemExit, match="ended with 3"):
        endurance.sample_process([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "metrics")
