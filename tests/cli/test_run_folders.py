"""Commands refuse the folder of another process, and to overwrite what another run or the user has written."""

import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cli.hostile import contents
from support.cli.lines import analyze, arguments, pretrain, sweep, train
from support.toy_datasets import toy_names_at

import ssql_det.detect.sweep
import ssql_det.detect.train
import ssql_det.pretrain.analyze_checkpoints
import ssql_det.pretrain.loop  # noqa: F401 (an import would give the other command the time to end)
from ssql_det.cli.main import main

pytestmark = pytest.mark.slow
RUNS = {
    "pretrain": pretrain("MONITOR.PERIOD 0"),
    "train-det": train(),
    "sweep": sweep(),
    "analyze": analyze("--pairs 8 --points 10 --perplexity 2"),
    "reproduce": "reproduce --preset mini --budget 0.01 --out {out}",
}
OVERWRITE = {
    "weights of a training": (train("MODEL.WEIGHTS {here}/run/model_final.pth"), "c4/model_final.pth", "holds a run"),
    "weights, resumed": (train(flags="--resume"), "c4/model_final.pth", "model_final.pth but no config.yaml"),
    "a config": (train(flags="--resume", of="{here}/run/config.yaml"), "c4.yaml", "is also an input"),
    "curves": (train(), "c4/metrics.jsonl", "holds a run"),
    "curves, resumed": (train(flags="--resume"), "c4/metrics.jsonl", "metrics.jsonl but no config.yaml"),
    "an initial checkpoint": (
        pretrain("INIT {here}/run/checkpoint.pth"),
        "pretrain/checkpoint.pth",
        "holds a run",
    ),
    "curves of a pretraining": (pretrain(), "pretrain/metrics.jsonl", "holds a run"),
    "a config of a pretraining": (
        pretrain(flags="--resume", of="{here}/run/config.yaml"),
        "pretrain.yaml",
        "is also an input",
    ),
}


def refused(line, place, capsys):
    """The error of a line, which changes no file."""
    before = contents(place.here)
    capsys.readouterr()
    with toy_names_at(place.toy), pytest.raises(SystemExit) as stopped:
        main(arguments(line.replace("{out}", "{here}/run"), place))
    assert stopped.value.code == 2
    assert contents(place.here) == before
    return capsys.readouterr().err


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("line", RUNS.values(), ids=RUNS)
def test_of_two_at_once_in_a_folder_one_goes_on(line, in_process, place, capsys, tmp_path):
    line, lock = line.replace("{out}", "{here}/run"), place.here / "run/.lock"
    is_long = line.startswith("reproduce")
    ends = {"file": str(lock), "lines": 0, "delay": 1, "signal": signal.SIGTERM} if is_long else {}
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(in_process, arguments(line, place), tmp_path / "log", **ends)
        while not lock.exists() or not lock.read_text():
            assert not first.done(), (tmp_path / "log").read_text()
            time.sleep(0.001)
        with toy_names_at(place.toy), pytest.raises(SystemExit) as stopped:
            main(arguments(line, place))
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert re.search(r"/run is in use by process \d+ on ", error), error
        assert first.result()["status"] == (143 if is_long else 0), (tmp_path / "log").read_text()


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize(("line", "file", "message"), OVERWRITE.values(), ids=OVERWRITE)
def test_files_of_others_are_not_overwritten(line, file, message, place, capsys):
    (place.here / "run").mkdir()
    name = "config.yaml" if file.endswith(".yaml") else file.rpartition("/")[2]
    shutil.copy(place.good / file, place.here / "run" / name)
    assert message in refused(line, place, capsys)
