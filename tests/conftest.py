import fcntl
import json
import logging
import multiprocessing.process
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Before torch is imported. Two threads would wait for each other on busy cores; one gives the same bits everywhere.
os.environ["OMP_NUM_THREADS"] = "1"
# Modules are compiled once, for all processes that the tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Under nohup it is ignored, also by the processes that the tests start and send it to.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

from ssql_det.toydata.dataset import ToyDataSettings, make_toy_data

LOGGERS = ("ssql_det", "detectron2", "fvcore")
MAKES_PROCESSES = {"toy", "in_process"}  # fixtures; who asks for them is slow
LONGEST = ("reproduce/test_mini.py", "detect/test_end_to_end.py", "cli/test_hostile.py", "convert/test_conversions.py")


def pytest_collection_modifyitems(items):
    """A test that is not slow is fast. Long modules come first, so that no worker has one left at the end."""
    for item in items:
        if MAKES_PROCESSES & set(item.fixturenames):
            item.add_marker("slow")
        if not item.get_closest_marker("slow"):
            item.add_marker("fast")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not str(item.path).endswith(LONGEST), item.path not in slow))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A fast test that starts a process fails, its fixtures included; loggers are as before after each test."""

    def refuse(*args, **options):
        raise AssertionError("a fast test starts a process: mark it slow")

    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("fast"):
            patch.setattr(subprocess.Popen, "__init__", refuse)
            patch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
        before = {logger: (logger.propagate, logger.level, logger.handlers[:]) for logger in loggers()}
        try:
            return (yield)
        finally:
            for logger in loggers():
                logger.propagate, level, logger.handlers = before.get(logger, (True, logging.NOTSET, []))
                if logger.level != level:  # setLevel visits every logger there is
                    logger.setLevel(level)


def loggers():
    """The package's and the engine's, with those below them: a command gives some of these a level of their own."""
    known = logging.root.manager.loggerDict.items()
    return [each for name, each in known if name.split(".")[0] in LOGGERS and isinstance(each, logging.Logger)]


@pytest.fixture
def logging_as_it_was(monkeypatch):
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)


@pytest.fixture
def registries_as_they_were(monkeypatch):
    """What a test registers is gone after it."""
    from ssql_det.backbones.build import BACKBONES
    from ssql_det.cli.main import COMMANDS
    from ssql_det.quant.points.family import FAMILIES
    from ssql_det.quant.quantizers.quantizer import ACTIVATIONS, WEIGHTS
    from ssql_det.ssl.method import METHODS

    for registry in (ACTIVATIONS, BACKBONES, COMMANDS, FAMILIES, METHODS, WEIGHTS):
        monkeypatch.setattr(registry, "_objects", dict(registry._objects))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """A function that fills a folder for all workers of pytest-xdist: the first that needs it makes it."""

    def make_once(name, make):
        root = tmp_path_factory.getbasetemp()
        folder = (root if worker_id == "master" else root.parent) / f"shared-{name}"
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.with_suffix(".done").exists():
                make(folder)
                folder.with_suffix(".done").touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def toy(made_once):
    """A small data set."""
    return made_once(
        "toy", lambda folder: make_toy_data(folder, ToyDataSettings(scenes=60, crops=60, seed=6), workers=2)
    )


@pytest.fixture(scope="session")
def in_process(toy):
    """Runs a command of ssql-det in a process of its own or in several, which may be killed; see ``process_server``."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"DETECTRON2_DATASETS": str(toy), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
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
