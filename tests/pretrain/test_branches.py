"""A checkpoint of a method with a moving average has two branches; the trained network is the default."""

import logging

import pytest
import torch
from support.pretrain.runs import config, content
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.convert import read_checkpoint
from ssql_det.pretrain.loop import pretrain

pytestmark = pytest.mark.usefixtures("logging_as_it_was")
METHODS = {"byol": {"BYOL__MOMENTUM": 0.9}, "moco": {"MOCO__MOMENTUM": 0.9, "MOCO__QUEUE": 40}}


@pytest.fixture(scope="module", params=METHODS)
def run(request, toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    pretrain(config(toy, folder, METHOD=request.param, **METHODS[request.param], OPTIM__EPOCHS=2))
    return folder


def run_command(capsys, *arguments):
    main([str(each) for each in arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--branch", "online"), ("--branch", "momentum")], ids=str)
def test_the_selected_branch_is_converted(options, run, tmp_path, capsys):
    branch, other = ("momentum", "online") if "momentum" in options else ("online", "momentum")
    out = tmp_path / "out.pkl"
    text = run_command(capsys, "convert", run / "checkpoint.pth", out, "--to", "detectron2", *options)
    assert f"{branch} branch, of online and momentum" in text
    assert f"it has conv1.weight in '{branch}'" in text
    found, expected = read_checkpoint(out), content(run)[branch]
    assert found.metadata.branch == branch
    kept = {name: tensor for name, tensor in expected.items() if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in kept.items())
    differing = [name for name, tensor in content(run)[other].items() if not torch.equal(expected[name], tensor)]
    assert len(differing) > len(kept) / 2


def test_branches_have_the_same_names(run):
    both = content(run)
    assert both["online"].keys() == both["momentum"].keys()
    assert not any("momentum.network.backbone" in name or "encoder.backbone" in name for name in both["heads"])
    assert any(name.startswith("momentum.network.projector.") for name in both["heads"])


def test_inspect_and_probe_show_the_branches(run, toy, tmp_path, capsys, caplog):
    text = run_command(capsys, "inspect", run / "checkpoint.pth")
    assert "online branch, of online and momentum" in text
    assert "momentum branch, of online and momentum" in run_command(
        capsys, "inspect", run / "checkpoint.pth", "--branch", "momentum"
    )
    given = ["--data", toy / "crops", "--bits", "FP", "--images", 20, "--out", tmp_path / "rows.jsonl"]
    with caplog.at_level(logging.INFO, "ssql_det"):
        run_command(capsys, "probe", "knn", "--checkpoint", run / "checkpoint.pth", *given)
    assert "checkpoint.pth: narrow_resnet, online branch, of online and momentum" in caplog.text


def test_a_method_without_a_moving_average_has_one_branch(whole, tmp_path, capsys):
    text = run_command(capsys, "inspect", whole / "checkpoint.pth")
    assert "online branch\n" in text
    message = refused(
        capsys,
        "convert",
        str(whole / "checkpoint.pth"),
        str(tmp_path / "out.pkl"),
        "--to",
        "detectron2",
        "--branch",
        "momentum",
    )
    assert "has no branch 'momentum', only online" in message
