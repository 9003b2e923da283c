"""``benchmarks/gpu.py`` counts waits by the line that waits for a GPU; its exit code says whether a check failed."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch

import ssql_det
from ssql_det.core.distributed import broadcast_from_main

pytestmark = pytest.mark.slow  # importing a benchmark imports what all its checks need

WAIT = "called a synchronizing CUDA operation (Triggered internally)"


@pytest.fixture
def import_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(ssql_det.__file__).parents[1] / "benchmarks")
    return importlib.import_module


@pytest.fixture
def gpu(import_benchmark, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the module extends
    return import_benchmark("gpu")


def test_waits_are_counted_by_the_line_of_the_package(import_benchmark):
    gpu_steps = import_benchmark("gpu_steps")
    with gpu_steps.counting_waits() as waits:
        for _ in range(3):
            broadcast_from_main(lambda: warnings.warn(WAIT, stacklevel=1))
        warnings.warn(WAIT, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    (line, count), outside = waits.most_common()
    assert (line.startswith("core/distributed.py:"), line.endswith("return compute()"), count) == (True, True, 3)
    assert outside == ("outside of the package", 1)


def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "this machine has no GPU; rehearse the checks with --device cpu\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (0.1, 0, "1 of 1 checks passed"),
        (0.3, 1, "failed: loss: error 0.3 (limit 0.2, EXCEEDED)"),
        (float("nan"), 1, "failed: loss: error nan (limit 0.2, EXCEEDED)"),
        (None, 1, "failed: check: RuntimeError: error inf (limit 0, EXCEEDED)"),
    ],
)
def test_the_exit_code_says_whether_a_check_failed(error, code, line, gpu, monkeypatch, capsys):
    def check(device):
        if error is None:
            raise RuntimeError("a kernel failed")
        yield gpu.CheckResult("loss", error, 0.2)

    monkeypatch.setattr(gpu, "PARTS", {"speed": check})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    assert gpu.main() == code
    assert capsys.readouterr().out.splitlines()[-1] == line
