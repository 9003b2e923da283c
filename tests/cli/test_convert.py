"""``ssql-det convert`` and ``inspect``: what a person sees, and that nothing is written when something is wrong."""

import argparse
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from support.report.rows import make_probe_row

import ssql_det
from ssql_det.cli.main import main
from ssql_det.convert import get_writers, read_checkpoint
from ssql_det.core.files import sha256
from ssql_det.core.rows import append_row

pytestmark = pytest.mark.slow

LAUNCHER = Path(ssql_det.__file__).parents[1] / "tools" / "convert_checkpoint.py"


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch):
    monkeypatch.setattr("ssql_det.core.console.set_up_logging", lambda: None)


@pytest.fixture(scope="module")
def weights():
    """A ResNet-18's, with norms that do something."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_()
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return state


@pytest.fixture(scope="module")
def moco_file(weights, tmp_path_factory):
    state = {f"module.encoder_q.{name}": tensor for name, tensor in weights.items()}
    state |= {"module.queue": torch.zeros(2, 3), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    path = tmp_path_factory.mktemp("moco") / "moco.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state, "args": argparse.Namespace(lr=0.03)}, path)
    return path


@pytest.fixture
def moco(moco_file, tmp_path):
    path = tmp_path / moco_file.name
    path.hardlink_to(moco_file)
    return path


def refused(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in arguments])
    return stopped.value.code == 2


@pytest.mark.parametrize("format", get_writers())
def test_a_conversion_tells_what_it_did_and_proves_it(format, moco, tmp_path, capsys):
    out = tmp_path / f"out{get_writers()[format].suffixes[0]}"
    main(["convert", str(moco), str(out), "--to", format, "--verify"])
    said = capsys.readouterr().out
    assert "moco.pth.tar is moco: it has encoder_q.conv1.weight in 'state_dict'" in said
    assert "resnet18, trained with moco, online branch" in said
    assert "100.0 % of the backbone: 120 tensors used" in said
    assert "left out: 2, a projector or classifier (encoder_q.fc.weight, encoder_q.fc.bias)" in said
    assert "left out: 2, MoCo's queue (queue, queue_ptr)" in said
    assert "verified: features of all four stages differ by" in said
    assert f"wrote {out}" in said
    assert ("left behind: 20" in said) == format.startswith("detectron2")
    assert list(tmp_path.glob(".*")) == []
    tensors, written = read_checkpoint(moco).tensors, read_checkpoint(out).tensors
    assert all(torch.equal(tensors[name], written[name]) for name in written)


def test_the_config_lines_are_yaml_to_paste(moco, tmp_path, capsys):
    out = tmp_path / "out.pkl"
    main(["convert", str(moco), str(out), "--to", "detectron2"])
    lines = yaml.safe_load(capsys.readouterr().out.partition("in a Detectron2 config:\n")[2])
    assert lines == {
        "INPUT": {"FORMAT": "RGB"},
        "MODEL": {
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
            "WEIGHTS": str(out),
        },
    }


def test_a_network_that_is_not_the_same_is_not_written(moco, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ssql_det.cli._verify.BAR", -1.0)
    out = tmp_path / "out.pth"
    assert refused("convert", moco, out, "--to", "torchvision", "--verify")
    assert "was not written: the features of its network differ by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [moco]


def test_an_unmatched_tensor_is_refused_unless_it_is_allowed(weights, tmp_path, capsys):
    source, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({**weights, "neck.0.weight": torch.zeros(3)}, source)
    assert refused("convert", source, out, "--to", "timm")
    output = capsys.readouterr()
    assert "unexpected: 1 (neck.0.weight)" in output.out
    assert output.err.endswith(
        "1 unexpected tensor(s): neck.0.weight; to leave them out, pass --allow-unmatched 'neck.0.weight'\n"
    )
    assert not out.exists()
    main(["convert", str(source), str(out), "--to", "timm", "--allow-unmatched", "neck.*"])
    assert out.exists()


def test_a_config_tells_what_a_detector_does_not(weights, tmp_path, capsys):
    fpn = {f"backbone.bottom_up.{name}": tensor for name, tensor in _detectron2(weights).items()}
    source, out, config = tmp_path / "model_final.pth", tmp_path / "out.pth", tmp_path / "config.yaml"
    torch.save({"model": fpn}, source)
    assert refused("convert", source, out, "--to", "torchvision")
    assert "it was trained with: --trained-with CONFIG.yaml" in capsys.readouterr().err
    config.write_text("INPUT: {FORMAT: BGR}\nMODEL: {DEVICE: cpu, RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}}\n")
    main(["convert", str(source), str(out), "--to", "torchvision", "--trained-with", str(config)])
    assert torch.equal(torch.load(out)["conv1.weight"], weights["conv1.weight"].flip(1))
    assert "left behind: 1, the format does not store mean" in capsys.readouterr().out


def _detectron2(weights):
    """A BasicBlock network under Detectron2's names, as its conversion script gives them."""
    renamed = {}
    for name, tensor in weights.items():
        if not name.startswith("fc") and not name.endswith("num_batches_tracked"):
            name = name if name.startswith("layer") else f"stem.{name}"
            for stage in range(1, 5):
                name = name.replace(f"layer{stage}", f"res{stage + 1}")
            for conv in (1, 2):
                name = name.replace(f"bn{conv}", f"conv{conv}.norm")
            renamed[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = tensor
    return renamed


def test_an_output_is_replaced_only_by_force(moco, tmp_path, capsys):
    out = tmp_path / "out.pth"
    out.write_text("precious")
    assert refused("convert", moco, out, "--to", "timm")
    assert out.read_text() == "precious"
    assert "exists already" in capsys.readouterr().err
    main(["convert", str(moco), str(out), "--to", "timm", "--force"])
    assert read_checkpoint(out).architecture.name == "resnet18"


MISTAKES = {
    "--to detectorn2": "did you mean 'detectron2'?",
    "--to detectron2": "ends in .pkl",
    "--to timm --from mocco": "did you mean 'moco'?",
    "--to timm --from simsiam": "is not in the format simsiam (encoder.conv1.weight is not in it); leave out --from",
    "--to timm --arch resnet50": "in a resnet50 it is",
    "--to timm --arch resnet51": "did you mean 'resnet50'?",
    "--to timm --branch momentum": "this moco file has no branch 'momentum', only online",
    "--to timm --prefix backbone": "is not in it); leave out --prefix",
    "--to timm --from moco --prefix backbone": "is not in it); leave out --from and --prefix",
    "--to timm --trained-with nowhere.yaml": "nowhere.yaml",
    "": "the following arguments are required: --to",
}


@pytest.mark.parametrize(("line", "said"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(line, said, moco, tmp_path, capsys):
    assert refused("convert", moco, tmp_path / "out.pth", *line.split())
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [moco]


def test_inspect_says_what_a_file_is(moco, capsys):
    main(["inspect", str(moco)])
    said = capsys.readouterr().out
    for part in (
        "moco.pth.tar is moco: it has encoder_q.conv1.weight",
        "124 tensors, 11,6",
        "state_dict/module.encoder_q.layer4.*: 30",
        "other entry: epoch = 200",
        "other entry: args = <inert argparse.Namespace>",
        "  lr = 0.03",
    ):
        assert part in said


def test_inspect_shows_any_file_that_can_be_opened(tmp_path, capsys):
    path = tmp_path / "x.pth"
    torch.save({"model": {"a.0.weight": torch.zeros(2, 3)}, "evil\x1b[31m\n": "\x1b[31mred" * 100}, path)
    main(["inspect", str(path)])
    said = capsys.readouterr().out
    assert "not convertible: " in said
    assert "1 tensors, 6 elements (1 float32)" in said
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) < 400


def make_cyclic():
    content = {}
    content.update({f"entry {index}": content for index in range(1000)})
    return content


def make_shared():
    shared = OrderedDict(a=1)
    for _ in range(60):
        shared = OrderedDict(a=shared, b=shared)
    return {"args": argparse.Namespace(fields=[shared], array=np.array([shared], dtype=object))}


@pytest.mark.parametrize("make", [make_cyclic, make_shared])
def test_inspect_ends_for_content_without_end(make, tmp_path):
    torch.save(make(), tmp_path / "x.pth")
    main(["inspect", str(tmp_path / "x.pth")])


def test_inspect_refuses_what_cannot_be_opened(tmp_path, capsys):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    assert refused("inspect", path)
    assert "the file is empty" in capsys.readouterr().err


def test_the_formats_are_listed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "--formats"])
    assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "read, write" in line] == list(get_writers())


@pytest.mark.slow
def test_the_launcher_is_the_command(moco, tmp_path):
    command = [sys.executable, LAUNCHER, moco, tmp_path / "out.safetensors", "--to", "safetensors"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, f"next: ssql-det inspect {tmp_path}/out.safetensors\n")
    assert read_checkpoint(tmp_path / "out.safetensors").metadata.method == "moco"


def test_a_model_card_has_what_the_rows_say_of_the_file(moco, tmp_path, capsys):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.safetensors"
    append_row(rows, make_probe_row(81.5, checkpoint_hash=sha256(moco)))
    main(["convert", str(moco), str(out), "--to", "safetensors", "--card", str(rows)])
    assert f"wrote {tmp_path}/out.md, its model card" in capsys.readouterr().out
    card = (tmp_path / "out.md").read_text()
    assert "value: 81.5" in card
    assert (
        "- architecture: resnet18\n- pretraining: moco\n- format: safetensors\n- converted from: moco.pth.tar (moco)\n"
        in card
    )
    other = tmp_path / "other.safetensors"
    append_row(tmp_path / "others.jsonl", make_probe_row())
    refused("convert", str(moco), str(other), "--to", "safetensors", "--card", str(tmp_path / "others.jsonl"))
    assert not other.exists()
