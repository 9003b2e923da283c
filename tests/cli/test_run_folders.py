"""Commands refuse the folder of another process, and to overwrite what another run or the user has written."""

import multiprocessing
import shutil
import signal

import pytest
from support.cli.hostile import contents
from support.cli.lines import analyze, arguments, pretrain, sweep, train
from support.toy_datasets import toy_names_at

from ssql_det.cli.main import main
from ssql_det.core.run_folder import owning_folder

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


def own(folder, ready):
    with owning_folder(folder):
        ready.set()
        signal.pause()


@pytest.fixture
def owner(place):
    """A process that owns the folder ``run``."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=own, args=(place.here / "run", ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("line", RUNS.values(), ids=RUNS)
def test_a_folder_in_use_is_refused(line, owner, place, capsys):
    assert f"/run is in use by process {owner.pid} on" in refused(line, place, capsys)


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize(("line", "file", "message"), OVERWRITE.values(), ids=OVERWRITE)
def test_files_of_others_are_not_overwritten(line, file, message, place, capsys):
    (place.here / "run").mkdir()
    name = "config.yaml" if file.endswith(".yaml") else file.rpartition("/")[2]
    shutil.copy(place.good / file, place.here / "run" / name)
    assert message in refused(line, place, capsys)
