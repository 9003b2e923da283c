"""How commands end: a bug in a traceback and exit code 1, a mistake in one sentence and code 2, a signal in one line.

Whatever happens, files of earlier runs stay as they were.
"""

import signal

import pytest
import torch
from support.cli.hostile import contents
from support.cli.lines import (
    analyze,
    arguments,
    bench,
    convert,
    export,
    export_backbone,
    predict,
    pretrain,
    probe,
    quantize,
    quantize_backbone,
    search,
    sensitivity,
    sweep,
    train,
)
from support.cli.lines import run as run_detector
from support.kills import read_pids, wait_until_ended
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
    "quantize": quantize(flags="--scheme norms=matched"),
    "quantize a backbone": quantize_backbone(),
    "sweep": sweep(out=NEW),
    "sweep at FP": sweep(out=NEW, flags="--bits FP"),
    "sensitivity": sensitivity("", "--out {out}/bits.json"),
    "sensitivity --fast": sensitivity("", "--fast --out {out}/bits.json"),
    "search": search(out=NEW),
    "search --fast": search(flags="--fast --lose 5", out=NEW),
    "predict": predict(),
    "export": export(),
    "bench": bench(out=NEW),
    "export a backbone": export_backbone(),
    "convert --verify": convert(out="{out}/new.pth --to timm --verify"),
}
OTHERS = {
    "reproduce": "reproduce --preset mni",
    "make-toy-data": "make-toy-data {here}/toy --scenes 3",
    "check-data": "check-data {here}/nowhere",
    "inspect": "inspect {here}/nothing.pth",
    "tables": "tables --table 6 --rows {here}/nothing.jsonl",
    "report": "report {here}/nothing",
    "configs": "configs --show mni",
    "run": run_detector("{here}/nothing.onnx"),
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


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_training_and_its_processes(number, code, said, in_process, place, tmp_path):
    line = f"pretrain --config-file {{good}}/pretrain.yaml OUTPUT_DIR {NEW} DATA.WORKERS 1"
    pids, log = tmp_path / "pids", tmp_path / "log"
    how = {"file": str(pids), "lines": 2, "signal": number, "work": "support.cli.slow_command:run"}
    ended = in_process([str(pids), *arguments(line, place)], log, **how)
    said_lines = log.read_text().splitlines()
    assert said_lines[-1] == said
    assert "Traceback" not in log.read_text()
    assert ended["status"] == code
    wait_until_ended(read_pids(pids))
