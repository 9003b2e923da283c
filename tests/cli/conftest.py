import os
import shutil

import pytest
import torch
import yaml
from support.cli.hostile import EARLIER, Place, contents
from support.cli.lines import arguments, sweep
from support.detect.configs import C4, CONFIGS, FPN, write_tiny_config
from support.toy_datasets import toy_names_at

from ssql_det.backbones import build_backbone
from ssql_det.cli.main import main

ROOT = CONFIGS.parents[1]


@pytest.fixture(scope="session")
def good(toy, made_once):
    """Configs, checkpoints, and the folder of a run of each kind."""
    place = made_once("good", lambda folder: make_good(toy, folder))
    before = contents(place)
    yield place
    assert contents(place) == before


def make_good(toy, place):
    place.mkdir()
    shortest = {"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": [], "SOLVER.CHECKPOINT_PERIOD": 1, "TEST.PRECISE_BN.NUM_ITER": 1}
    smallest = {"SIMSIAM.DIM": 16, "SIMSIAM.HIDDEN": 8, "OPTIM.BATCH": 16, "OPTIM.EPOCHS": 1}
    smallest |= {"MONITOR.PERIOD": 0, "DEVICE": "cpu"}
    write_tiny_config(place / "c4.yaml", C4, **shortest)
    write_tiny_config(place / "fpn.yaml", FPN, **shortest)
    mini = {"_BASE_": f"{ROOT}/configs/pretrain/mini.yaml", "DATA.TRAIN": f"{toy}/crops"}
    (place / "pretrain.yaml").write_text(yaml.safe_dump(mini | smallest))
    torch.save(build_backbone("narrow_resnet").module.state_dict(), place / "backbone.pth")
    with toy_names_at(toy), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)
        main(["pretrain", "--config-file", f"{place}/pretrain.yaml", "OUTPUT_DIR", f"{place}/pretrain"])
        for name in ("c4", "fpn"):
            main(["train-det", "--config-file", f"{place}/{name}.yaml", "OUTPUT_DIR", f"{place}/{name}"])
            shutil.copy(place / name / "model_final.pth", place / f"{name}.pth")
        main(arguments(sweep(out="{good}/sweep"), Place(place, place, toy)))


@pytest.fixture
def place(tmp_path, toy, good, monkeypatch):
    """A test's own folder, the current one, with an earlier run's outputs in it."""
    place = Place(tmp_path / "here", good, toy)
    place.out.mkdir(parents=True)
    for name in EARLIER:
        (place.out / name).write_text("of an earlier run\n")
    shutil.copy(good / "sweep/results.jsonl", place.out / "rows.jsonl")
    monkeypatch.chdir(place.here)
    monkeypatch.setenv("PATH", str(place.here), prepend=os.pathsep)
    return place


@pytest.fixture
def run(place, capsys):
    """Runs a line: its exit code and what it prints."""

    def run(line):
        capsys.readouterr()
        code = 0
        try:
            with toy_names_at(place.toy):
                main(arguments(line, place))
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr()

    return run
