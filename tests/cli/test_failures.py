"""How commands end: a bug in a traceback and exit code 1, a mistake in one sentence and code 2, a signal in one line.

Whatever happens, files of earlier runs stay as they were.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.cli.hostile import contents
from support.cli.lines import analyze, arguments, convert, predict, pretrain, probe, sensitivity, sweep, train
from support.toy_datasets import toy_names_at

from ssql_det.cli.main import COMMANDS, main
from ssql_det.core.errors import DEBUG_VARIABLE, REPORT_LINE, UserError

pytestmark = pytest.mark.slow
NEW = "{here}/new"
RUN_A_MODEL = {
    "demo": "demo --size 32 --arch narrow_resnet --bits FP,4",
    "pretrain": pretrain("MONITOR.PERIOD 0").replace("{out}", NEW),
    "probe knn": probe(),
    "probe linear": probe().replace("probe knn", "probe linear --epochs 1"),
    "analyze": analyze("--pairs 8 --points 10 --perplexity 2"),
    "train-det": train("").replace("{out}", NEW),
    "train-det --eval-only": train("MODEL.WEIGHTS {good}/c4.pth", "--eval-only"),
    "sweep": sweep(out=NEW),
    "sweep at FP": sweep(out=NEW, flags="--bits FP"),
    "sensitivity": sensitivity("", "--out {out}/bits.json --calib-images 2"),
    "sensitivity --fast": sensitivity("", "--fast --out {out}/bits.json --calib-images 2"),
    "predict": predict(),
    "convert --verify": convert(out="{out}/new.pth --to timm --verify"),
}
OTHERS = {
    "reproduce": "reproduce --preset mni",
    "make-toy-data": "make-toy-data {here}/toy --scenes 3",
    "check-data": "check-data {here}/nowhere",
    "inspect": "inspect {here}/nothing.pth",
    "tables": "tables --table 6 --rows {here}/nothing.jsonl",
    "configs": "configs --show mni",
}


@pytest.fixture(autouse=True)
def calm(logging_as_it_was, monkeypatch):
    """In every test of this file; variables that a command sets are restored."""
    monkeypatch.setenv(DEBUG_VARIABLE, "0")


@pytest.fixture
def run(place, capsys):
    """Runs a line; its exit code and the lines on stderr. What was there before is untouched."""

    def run(line):
        before = contents(place.here)
        capsys.readouterr()
        with toy_names_at(place.toy), pytest.raises(SystemExit) as stopped:
            main(arguments(line, place))
        after = contents(place.here)
        assert {path: after.get(path) for path in before} == before
        return stopped.value.code, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def in_each_conv(monkeypatch):
    """Makes every convolution raise an exception."""

    def plant(raised):
        def fail(*arguments, **options):
            raise raised

        monkeypatch.setattr(torch.nn.functional, "conv2d", fail)

    return plant


@pytest.mark.parametrize("line", RUN_A_MODEL.values(), ids=RUN_A_MODEL)
def test_a_bug_in_a_model_is_a_traceback_and_exit_code_1(line, run, in_each_conv):
    in_each_conv(KeyError("planted"))
    code, lines = run(line)
    assert lines[-2:] == ["KeyError: 'planted'", REPORT_LINE]
    assert "Traceback (most recent call last):" in lines
    assert any("in fail" in line for line in lines)
    assert not [line for line in lines if line.startswith("error: ")]
    assert code == 1


@pytest.mark.parametrize("line", RUN_A_MODEL.values(), ids=RUN_A_MODEL)
def test_a_mistake_found_in_a_model_is_one_sentence_and_exit_code_2(line, run, in_each_conv):
    in_each_conv(UserError("planted; plant nothing"))
    assert run(line) == (2, ["error: planted; plant nothing"])


@pytest.mark.parametrize("line", OTHERS.values(), ids=OTHERS)
def test_a_mistake_is_one_sentence_and_exit_code_2(line, run):
    code, lines = run(line)
    assert code == 2
    assert lines[-1].startswith("error: ")
    assert all(line.startswith("caused by ") for line in lines[:-1])


def test_every_command_is_tried():
    assert {line.split()[0] for line in (*RUN_A_MODEL.values(), *OTHERS.values())} == set(COMMANDS)


@pytest.mark.parametrize("line", ["{} --debug", "--debug {}"])
def test_debug_stands_anywhere_and_shows_the_traceback_of_a_mistake(line, run):
    code, lines = run(line.format(train("SOLVER.MAX_ITER 1 NO.KEY 1").replace("{out}", NEW)))
    assert code == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: unknown config key NO.KEY")


# ---- signals, to a process of its own --------------------------------------------------------------------------------

SLOW = """
import multiprocessing, sys, time
import torch
from ssql_det.cli.main import main

def slow(*arguments, forward=torch.nn.functional.conv2d):
    if multiprocessing.active_children():  # the loader's worker is at work
        print("running", flush=True)
        time.sleep(60)
    return forward(*arguments)

torch.nn.functional.conv2d = slow
main(sys.argv[1:])
"""
STARTING = """
import sys
from ssql_det.cli.main import main
from ssql_det.core.processes import CONTEXT

CONTEXT.set_forkserver_preload(["torch"])  # the other libraries would only delay the signal
main(sys.argv[1:])
"""


def _is_alive(pid):
    """A process that ended and that nobody waited for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _list_children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_ends_a_training_and_its_processes(number, code, said, processes, place):
    line = f"pretrain --config-file {{good}}/pretrain.yaml --num-gpus {processes} OUTPUT_DIR {NEW} DATA.WORKERS 1"
    command = [sys.executable, "-c", SLOW, *arguments(line, place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if processes > 1:  # the ranks run no code of this file: they are stopped while they start or train
        command[2] = STARTING
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )
    try:
        if processes == 1:
            assert process.stdout.readline() == "running\n"
        deadline = time.monotonic() + 60
        while len(_list_children(process.pid)) < processes and time.monotonic() < deadline:
            time.sleep(0.05)
        children = _list_children(process.pid)
        assert len(children) >= processes
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert err.splitlines()[-1] == said
    assert "Traceback" not in err
    assert process.returncode == code
    deadline = time.monotonic() + 10
    while any(map(_is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, children))
