"""Functions in a process of its own: what they return, and how it ends."""

import signal
import sys

import pytest

from ssql_det.core.function_process import FunctionProcess, read_memory, read_peak_memory

pytestmark = pytest.mark.slow

CODE = """
import os, sys
from ssql_det.core.function_process import read_peak_memory, serve

block = []

def allocate():
    block.append(bytearray(os.urandom(1)) * (1 << 26))
    return read_peak_memory()

print("a library's line")
serve({
    "count": lambda: [len(sys.argv), os.environ["WORD"], sys.modules.get("numpy") is not None],
    "memory": read_peak_memory,
    "allocate": allocate,
    "end": lambda: os._exit(3),
}, ready={"pid": os.getpid()})
"""


@pytest.fixture
def process():
    with FunctionProcess([sys.executable, "-c", CODE, "more"], {"WORD": "ä"}) as process:
        yield process


def test_a_function_runs_there_with_arguments_and_environment(process):
    assert process.ready == {"pid": process.process.pid}
    assert process.run("count") == [2, "ä", False]


def test_its_peak_memory_is_its_own(process):
    block = bytearray(b"1") * (1 << 28)  # of this process, from which it was started
    before = process.run("memory")
    assert before < 1 << 27 < len(block) < read_peak_memory()
    assert 1 << 26 <= process.run("allocate") - before < 1 << 27
    if sys.platform == "linux":
        assert read_memory("VmHWM", process.process.pid) == process.run("memory")


def test_it_ends_with_its_block():
    with FunctionProcess([sys.executable, "-c", CODE], {"WORD": ""}) as process:
        assert process.process.poll() is None
    assert process.process.returncode == 0
    with pytest.raises(KeyError), FunctionProcess([sys.executable, "-c", CODE], {"WORD": ""}) as process:
        raise KeyError
    assert process.process.returncode == -signal.SIGKILL


def test_an_end_without_an_answer_is_an_exception(process):
    with pytest.raises(RuntimeError, match="a process ended with exit code 3: "):
        process.run("end")
