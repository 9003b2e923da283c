"""The examples of docs/extending.md as a plug-in: pretrained, killed, resumed, probed and swept."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from support.detect.sweeps import sweep_arguments
from support.pages import ROOT, commands, python_blocks

from ssql_det.core.errors import REPORT_LINE

PAGE = ROOT / "docs/extending.md"
OF_DETECTORS = """
from ssql_det.quant import FAMILIES, Side
from ssql_det.quant.points.resnet import ResNets


class Coarse(ResNets):
    def find_points(self, model, placement, image_range):
        return (point for point in super().find_points(model, placement, image_range) if point.side is not Side.INPUT)


FAMILIES.register("coarse")(Coarse())
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the page's blocks as one module, and another with a family of detectors' backbones."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_lab.py").write_text("\n".join(block.text for block in python_blocks(PAGE)))
    (folder / "coarse.py").write_text(OF_DETECTORS)
    (folder / "broken.py").write_text("import my_lab\n\nraise ZeroDivisionError('mine')\n")
    (folder / "wants.py").write_text("import not_to_be_found\n")
    return folder


@pytest.fixture
def run(lab, in_process, tmp_path):
    """Runs a command in the lab; returns what it prints, or what it says when it fails."""

    def run(*arguments, status=0):
        said, errors = tmp_path / "said", tmp_path / "errors"
        for file in (said, errors):
            file.write_text("")
        ended = in_process(list(map(str, arguments)), said, errors=errors, folder=lab)
        assert ended["status"] == status, errors.read_text()
        return (errors if status else said).read_text()

    return run


def pretraining(toy, out, *more):
    keys = {"METHOD": "pulled", "PULLED.DIM": 16, "BACKBONE": "plain", "SSQL.SCHEME": "act=shrunk:0.9"}
    keys |= {"DATA.TRAIN": toy / "crops", "DATA.SIZE": 16, "OPTIM.BATCH": 16, "OPTIM.EPOCHS": 3, "DEVICE": "cpu"}
    pairs = [word for pair in (keys | {"MONITOR.PERIOD": 0, "OUTPUT_DIR": out}).items() for word in pair]
    return ["--plugin", "my_lab", "pretrain", "--config-file", ROOT / "configs/pretrain/mini.yaml", *more, *pairs]


def digest(folder):
    return hashlib.sha256((folder / "checkpoint.pth").read_bytes()).hexdigest()


def test_a_method_a_network_and_quantizers_are_trained_killed_resumed_and_probed(run, lab, toy, in_process, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*pretraining(toy, whole))
    moment = {"pattern": f"{killed}/checkpoint.pth", "size": 0}
    command = list(map(str, pretraining(toy, killed)))
    assert in_process(command, tmp_path / "log", folder=lab, **moment)["status"] == -9
    run(*pretraining(toy, killed, "--resume"))
    assert digest(killed) == digest(whole)
    rows = tmp_path / "rows.jsonl"
    given = ["--checkpoint", whole / "checkpoint.pth", "--data", toy / "crops", "--recipe", "digits", "--out", rows]
    run("probe", "knn", *given, "--bits", "FP,4", "--scheme", "act=shrunk:0.9", "--plugin=my_lab")
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["network"], row["method"].split(",")[0], row["scheme"], row["bits"]) for row in found] == [
        ("plain", "SSQL-Pulled", "act=shrunk:0.9", bits) for bits in ("FP", "4w4a")
    ]
    images = ["--recipe", "digits", "--calib-images", 8, "--reconstruction-images", 8]
    network = ["--checkpoint", whole / "checkpoint.pth", "--data", toy / "crops", "--out", tmp_path / "q.safetensors"]
    said = run("quantize", "--plugin=my_lab", *network, *images, "--scheme", "weight=gentle:3", "--bits", 4)
    assert "blocks learned" in said
    said = run("probe", "knn", *given, status=2)
    assert "there is no backbone 'plain'" in said
    assert "--plugin" in said


def test_a_custom_family_is_swept(run, learned, toy, tmp_path):
    run("--plugin", "coarse", *sweep_arguments(learned, tmp_path / "sweep", bits="4"))
    with safe_open(tmp_path / "sweep/quantization.safetensors", framework="pt") as file:
        points = {(point["path"], point["side"]) for point in json.loads(file.metadata()["points"])}
    assert ("backbone.res3.0", "output") in points
    assert not [path for path, side in points if path.startswith("backbone.") and side == "input"]
    assert len((tmp_path / "sweep/results.jsonl").read_text().splitlines()) == 1


def test_a_config_names_plugins_too(run, toy, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"_BASE_: {ROOT}/configs/pretrain/mini.yaml\nPLUGINS: [my_lab]\nMETHOD: pulled\n"
    )
    _, _, _, _, *pairs = pretraining(toy, tmp_path / "out")[1:]
    words = ["pretrain", "--config-file", tmp_path / "mine.yaml", *pairs, "OPTIM.EPOCHS", 1]
    run(*words)
    assert (tmp_path / "out/checkpoint.pth").exists()


def test_a_custom_format_is_read(run, tmp_path):
    from ssql_det.backbones import build_backbone

    state = {f"student.body.{name}": tensor for name, tensor in build_backbone("resnet18").module.state_dict().items()}
    torch.save({"my_lab": 1, "state_dict": state}, tmp_path / "theirs.pth")
    assert "my-lab" in run("--plugin", "my_lab", "inspect", tmp_path / "theirs.pth")


def test_the_pages_commands_run(run):
    of_points = next(each.words for each in commands(PAGE) if "count-points" in each.words)
    assert run(*of_points[1:]) == "plain: 4 points\n"
    assert run("--plugin", "my_lab", "count-points", "nothing", status=2).startswith("error: nothing has no points")
    assert "count-points" in run("--plugin", "my_lab", "--help")


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("my_lib", 2, "error: there is no module my_lib for --plugin: run where it is, or set PYTHONPATH\n"),
        ("broken", 1, f"ZeroDivisionError: mine\n{REPORT_LINE}\n"),
        ("wants", 1, f"ModuleNotFoundError: No module named 'not_to_be_found'\n{REPORT_LINE}\n"),
        ("", 2, "error: --plugin needs a module's name: --plugin my_module\n"),
    ],
)
def test_a_plugin_that_cannot_be_imported(run, name, status, said):
    found = run("demo", "--plugin", name, status=status)
    assert found.endswith(said)
    assert ("Traceback" in found) == (status == 1)
