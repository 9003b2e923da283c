"""Networks of any family: trained, resumed, probed and used as INIT; a checkpoint names their builder."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.pretrain.runs import config, content
from support.refusals import refused
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from ssql_det.backbones import BACKBONES, build_backbone
from ssql_det.cli.main import main
from ssql_det.convert import IMAGENET, Metadata, read_checkpoint
from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.pretrain.checkpoint import TrainingState, read_backbone, read_pretrained_method
from ssql_det.pretrain.loop import pretrain
from ssql_det.pretrain.probe_checkpoint import ProbeSettings, probe_checkpoint
from ssql_det.ssl import BYOL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("logging_as_it_was")]
SMALL = "shufflenet_v2_x0_5"
SIZES = {
    "timm/test_resnet": 32,
    "timm/test_vit": 160,
    "timm/test_efficientnet": 64,  # smaller images would leave the last stage one pixel
    SMALL: 64,
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Two images to train on, and two for probes."""
    folder, generator = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (folder / place).mkdir(parents=True)
        pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / place / "0.png")
    return folder


def two_steps(few, out, name, size=32, **more):
    return config(few, out, BACKBONE=name, DATA__TRAIN=few, DATA__SIZE=size, OPTIM__BATCH=2, OPTIM__EPOCHS=2, **more)


def rows(path, few, size=32, bits="FP,4w4a"):
    result = probe_checkpoint(
        str(path),
        str(few),
        bits,
        "digits",
        ProbeSettings(("knn",), 0, "cpu", workers=0, num_calibration_images=2, image_size=size),
    )
    return {row.bits: (row.network, row.metrics["knn/top1"], row.metrics["MB"]) for row in result}


@pytest.mark.parametrize("name", SIZES)
def test_a_network_is_trained_stopped_resumed_and_probed(name, few, monkeypatch, tmp_path):
    save = TrainingState.save

    def save_and_copy(run, folder, steps):
        path = save(run, folder, steps)
        if steps == 1:
            shutil.copytree(folder, tmp_path / "stopped")  # as after a kill at this moment
        return path

    run = {"size": SIZES[name], "SSQL__ENABLED": SIZES[name] < 160}  # for speed
    whole, stopped = (two_steps(few, tmp_path / each, name, **run) for each in ("whole", "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_and_copy)
        path = pretrain(whole)
    assert sha256(pretrain(stopped, resume=True)) == sha256(path)
    file = content(path.parent)
    assert (file["ssql_det"]["version"], file["ssql_det"]["backbone"]) == (2, {"name": name})
    assert file["online"].keys() == build_backbone(name).module.state_dict().keys()
    result = rows(path, few, SIZES[name])
    assert [network for network, *_ in result.values()] == [name, name]
    assert result["4w4a"][2] < result["FP"][2] / 3


@pytest.fixture(scope="module")
def byol_checkpoint(tmp_path_factory):
    """Makes a BYOL checkpoint of a backbone, with different branches; cached by backbone."""
    folder, cache = tmp_path_factory.mktemp("byol_checkpoint"), {}

    def make(name):
        if name not in cache:
            torch.manual_seed(0)
            method = BYOL(build_backbone(name), dim=8, hidden=8)
            with torch.no_grad():
                for parameter in method.momentum.parameters():
                    parameter.add_(0.01)
            optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
            cache[name] = TrainingState(method, name, optimizer, Metadata(IMAGENET, False, "BYOL")).save(
                folder / name, 0
            )
        return cache[name]

    return make


@pytest.mark.parametrize("name", [SMALL, "timm/resnet18", "narrow_resnet"])
def test_reading_gives_what_was_written(name, byol_checkpoint):
    file, trained = content(byol_checkpoint(name).parent), read_pretrained_method(byol_checkpoint(name))
    for branch, encoder in (("online", trained.encoder), ("momentum", trained.target)):
        state = encoder.backbone.state_dict()
        assert state.keys() == file[branch].keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in file[branch].items())
    result = read_backbone(byol_checkpoint(name))
    assert (result.backbone.name, result.network) == (name, name.removeprefix("timm/"))
    assert (result.metadata.branch, result.source.branches) == ("online", ("online", "momentum"))
    assert result.metadata == Metadata(IMAGENET, False, "BYOL")


@pytest.mark.parametrize("name", ["timm/resnet18", "narrow_resnet"])
def test_a_resnet_of_any_builder_is_converted(name, byol_checkpoint, tmp_path, capsys):
    main(
        ["convert", str(byol_checkpoint(name)), str(tmp_path / "out.pkl"), "--to", "detectron2", "--branch", "momentum"]
    )
    main(["inspect", str(byol_checkpoint(name))])
    assert f"{name.removeprefix('timm/')}, trained with BYOL, online branch" in capsys.readouterr().out
    result, expected = read_checkpoint(tmp_path / "out.pkl"), content(byol_checkpoint(name).parent)["momentum"]
    assert result.architecture.name == name.removeprefix("timm/")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in result.tensors.items())


def test_another_network_is_not_converted(byol_checkpoint, tmp_path, capsys):
    path = str(byol_checkpoint(SMALL))
    message = f"its backbone is {SMALL}, and only ResNets can be converted; .* probe, analyze or pretrain"
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)
    assert f"its backbone is {SMALL}" in refused(
        capsys, "convert", path, str(tmp_path / "out.pkl"), "--to", "detectron2"
    )
    main(["inspect", path])
    assert f"not convertible: {path}: its backbone is {SMALL}" in capsys.readouterr().out


def test_equal_tensors_do_not_make_another_network_a_resnet(byol_checkpoint, tmp_path):
    file = content(byol_checkpoint("timm/resnet18").parent)
    named({"name": "timm/resnetblur18"})(file)
    torch.save(file, tmp_path / "x.pth")
    with pytest.raises(UserError, match="its backbone is timm/resnetblur18"):
        read_checkpoint(tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth", arch="resnet18").architecture.name == "resnet18"
    assert read_backbone(tmp_path / "x.pth").network == "timm/resnetblur18"


@pytest.fixture
def version_1(few, stop_after, tmp_path):
    """A run stopped after its first step, with a checkpoint of version 1, which had no names of builders."""
    cfg = two_steps(few, tmp_path / "old", "narrow_resnet", METHOD="byol", BYOL__MOMENTUM=0.9)
    stop_after(cfg, 1)
    file = content(tmp_path / "old")
    known = {key: value for key, value in file["ssql_det"].items() if key not in ("version", "backbone")}
    file["ssql_det"] = {"version": 1, "arch": "narrow_resnet", **known, "source": None}
    torch.save(file, tmp_path / "old" / "checkpoint.pth")
    return cfg


def test_a_file_of_version_1_is_still_read(version_1, few, tmp_path):
    stopped = tmp_path / "old" / "checkpoint.pth"
    shutil.copy(stopped, tmp_path / "old.pth")
    state = content(tmp_path / "old")
    trained = read_pretrained_method(stopped)
    for branch, encoder in (("online", trained.encoder), ("momentum", trained.target)):
        assert all(torch.equal(tensor, state[branch][key]) for key, tensor in encoder.backbone.state_dict().items())
    assert rows(stopped, few, bits="FP")["FP"][0] == "narrow_resnet"
    main(["convert", str(stopped), str(tmp_path / "out.pth"), "--to", "torchvision"])
    assert torch.load(tmp_path / "out.pth").keys() == state["online"].keys()
    pretrain(two_steps(few, tmp_path / "from", "narrow_resnet", INIT=stopped))
    pretrain(version_1, resume=True)
    pretrain(two_steps(few, tmp_path / "whole", "narrow_resnet", METHOD="byol", BYOL__MOMENTUM=0.9))
    assert sha256(stopped) == sha256(tmp_path / "whole" / "checkpoint.pth")


def test_init_needs_the_same_network(byol_checkpoint, few, tmp_path):
    path = byol_checkpoint(SMALL)
    run = {"INIT": path, "OPTIM__LR": 0.0}
    pretrain(two_steps(few, tmp_path / "run", SMALL, **run))
    ours, theirs = content(tmp_path / "run")["online"], content(path.parent)["online"]
    assert torch.equal(ours["conv1.0.weight"], theirs["conv1.0.weight"])
    with pytest.raises(UserError, match=rf"has the backbone {SMALL}, not timm/.*; set BACKBONE {SMALL}"):
        pretrain(two_steps(few, tmp_path / "other", "timm/mobilenetv2_050", **run))


def named(backbone):
    return lambda file: file["ssql_det"].update(backbone=backbone)


def first(change):
    """A change of the first tensor of the network."""
    return lambda file: change(file["online"], next(iter(file["online"])))


FAULTS = {
    "another's tensors": (
        named({"name": "timm/mobilenetv2_050"}),
        r"does not fit the backbone timm/mobilenetv2_050 of this version: ",
    ),
    "a tensor too few": (
        first(lambda state, name: state.pop(name)),
        "weight is missing, not float32 .* may be damaged",
    ),
    "a tensor too many": (lambda file: file["online"].update(more=torch.ones(1)), "more is unexpected"),
    "no tensor": (first(lambda state, name: state.update({name: 5})), "weight is no plain tensor, not float32"),
    "another shape": (first(lambda state, name: state.update({name: torch.ones(3)})), r"float32 \[3\], not float32 \["),
    "another type": (first(lambda state, name: state.update({name: state[name].double()})), "is float64"),
    "NaN": (first(lambda state, name: state[name].fill_(torch.nan)), "has NaN or infinite values"),
    "no network": (lambda file: file.pop("online"), r"its metadata is invalid \(KeyError\('online'\)\)"),
    "a network that is none": (lambda file: file.update(online=[1]), "its metadata is invalid"),
    "an unknown one": (named({"name": "mobilenet_v9"}), r"no backbone 'mobilenet_v9'; did you mean 'mobilenet_v2'"),
    "one of one's own": (named({"name": "zzz"}), r"no backbone 'zzz' \(.* --plugin MODULE"),
    "a program": (named({"name": "os.system"}), "no backbone 'os.system'"),
    "a file": (named({"name": "timm/../x"}), r"no backbone 'timm/\.\./x'"),
    "a repository": (named({"name": "timm/hf-hub:x/y"}), "no backbone 'timm/hf-hub:x/y'"),
    "a number": (named({"name": 5}), "its metadata is invalid"),
    "a list": (named(["resnet18"]), "its metadata is invalid"),
    "nothing": (named(None), "its metadata is invalid"),
    "a long name": (named({"name": "resnet" * 10000}), "its metadata is invalid"),
    "arguments": (named({"name": SMALL, "weights": "evil"}), "its metadata is invalid"),
    "a later version": (lambda file: file["ssql_det"].update(version=3), "."),
    "versions": (lambda file: file["ssql_det"].update(version=torch.tensor([2, 2])), "its metadata is invalid"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused(kind, byol_checkpoint, tmp_path):
    change, message = FAULTS[kind]
    file = content(byol_checkpoint(SMALL).parent)
    change(file)
    path = tmp_path / "x.pth"
    torch.save(file, path)
    with pytest.raises(UserError, match=message) as refusal:
        read_backbone(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 800
    for reading in (read_pretrained_method, read_checkpoint):
        with pytest.raises(UserError):
            reading(path)


class WithExtraState(nn.Conv2d):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


UNSAVABLE = {
    "parametrized": (lambda count: weight_norm(nn.Conv2d(3, 4, 3)), "0 is parametrized"),
    "extra state": (lambda count: WithExtraState(3, 4, 3), "0._extra_state is no plain tensor"),
    "another each time": (
        lambda count: nn.Sequential(nn.Conv2d(3, 4 + count, 1), nn.Conv2d(4 + count, 4, 1)),
        r"0\.0\.weight is float32 \[5, 3, 1, 1\], not float32 \[6",
    ),
}


def registered(monkeypatch, layer):
    built = []

    def builder(zero_init_residual):
        built.append(1)
        return nn.Sequential(layer(len(built)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4

    monkeypatch.setattr(BACKBONES, "_objects", {**BACKBONES._objects, "my_net": builder})


@pytest.mark.parametrize("kind", UNSAVABLE)
def test_a_network_that_cannot_be_rebuilt_is_not_trained(kind, few, monkeypatch, tmp_path):
    layer, message = UNSAVABLE[kind]
    registered(monkeypatch, layer)
    with pytest.raises(UserError, match=f"a checkpoint of my_net could not be loaded: {message}"):
        pretrain(two_steps(few, tmp_path / "run", "my_net"))
    assert not (tmp_path / "run").exists()


def test_a_registered_network_is_trained_and_needs_its_module_to_be_read(few, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        registered(patch, lambda count: nn.Conv2d(3, 4, 3))
        path = pretrain(two_steps(few, tmp_path / "run", "my_net"))
        assert rows(path, few)["4w4a"][0] == "my_net"
    with pytest.raises(UserError, match=r"checkpoint\.pth: there is no backbone 'my_net'.*--plugin MODULE"):
        read_backbone(path)
