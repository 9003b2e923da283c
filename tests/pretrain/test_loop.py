"""Pretraining from crops to a checkpoint, and errors as one sentence."""

import json
import shutil
from operator import attrgetter

import pytest
import torch
from support.pretrain import processes as two_processes
from support.pretrain.runs import MINI, config, content, keys, same
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.convert import read_checkpoint
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.launch import launch
from ssql_det.core.rows import Calibration
from ssql_det.pretrain.config import build_metadata, build_network, read_config
from ssql_det.pretrain.loop import pretrain
from ssql_det.quant import SampledBits
from ssql_det.ssl import METHODS, SSQL
from ssql_det.ssl.method import get_hyperparameters

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


# ---- the checkpoint ------------------------------------------------------------------------------------------------


def test_convert_reads_the_checkpoint(whole):
    checkpoint = read_checkpoint(whole / "checkpoint.pth")
    assert (checkpoint.architecture.name, checkpoint.source.format) == ("narrow_resnet", "ssql_det")
    assert (checkpoint.metadata.method, checkpoint.metadata.seed, checkpoint.metadata.input.channels) == (
        "SSQL",
        5,
        "RGB",
    )
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())


def test_weights_change_and_curves_are_written(whole, toy, tmp_path):
    torch.manual_seed(5)
    _, backbone = build_network(config(toy, tmp_path))
    assert not torch.equal(content(whole)["online"]["conv1.weight"], backbone.module.conv1.weight)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))  # 48 crops to train, 24 at a time, 3 epochs
    assert all(0 < line["spread"] < 1.5 and -1 <= line["loss"] <= 1 for line in lines)


def test_the_same_seed_gives_the_same_run_also_with_workers(whole, toy, tmp_path):
    pretrain(config(toy, tmp_path / "again", DATA__WORKERS=2))
    assert same(content(tmp_path / "again"), content(whole))
    pretrain(config(toy, tmp_path / "other", SEED=6))
    assert not same(content(tmp_path / "other")["online"], content(whole)["online"])


def test_without_ssql_it_is_the_method_alone(toy, tmp_path):
    pretrain(config(toy, tmp_path, SSQL__ENABLED=False))
    assert read_checkpoint(tmp_path / "checkpoint.pth").metadata.method == "SimSiam"


def test_init_loads_any_backbone(whole, toy, tmp_path):
    network, _ = build_network(config(toy, tmp_path, INIT=whole / "checkpoint.pth"))
    loaded = network.method.encoder.backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in content(whole)["online"].items())
    with pytest.raises(UserError, match=r"has the backbone narrow_resnet, not resnet18; set BACKBONE narrow"):
        build_network(config(toy, tmp_path, INIT=whole / "checkpoint.pth", BACKBONE="resnet18"))


def test_init_with_another_channel_order_is_refused(whole, toy, tmp_path):
    results = content(whole)
    results["ssql_det"]["input"]["channels"] = "BGR"
    torch.save(results, tmp_path / "bgr.pth")
    with pytest.raises(UserError, match="was trained on BGR images, but pretraining uses RGB; convert it"):
        build_network(config(toy, tmp_path, INIT=tmp_path / "bgr.pth"))


def test_two_processes_with_synchronized_norms_equal_one(toy, tmp_path):
    few = {"SYNC_NORM": True, "OPTIM__EPOCHS": 1, "OPTIM__LR": 0.001}
    two_processes.pretrained(MINI, keys(toy, tmp_path / "one", **few))
    half = keys(toy, tmp_path / "half", **few, AMP=True, DATA__SIZE=32)
    launch(two_processes.pretrained, MINI, keys(toy, tmp_path / "two", **few), half, processes=2)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert len(two["resume"]["rng"]) == 2
    for part in ("online", "heads"):
        for name, value in one[part].items():  # float32 errors can change a quantized value
            assert (two[part][name] - value).abs().max() <= 2e-3 * value.abs().max().clamp(min=1e-3), name


def test_the_memory_format_moves_a_step_in_its_last_digits_and_no_file(toy, tmp_path):
    losses, weights = {}, {}
    for name in ("channels_last", "contiguous"):
        keys = {"MEMORY_FORMAT": name, "SSQL__ENABLED": False, "OPTIM__EPOCHS": 1}
        pretrain(config(toy, tmp_path / name, **keys))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name], weights[name] = json.loads(lines[0])["loss"], content(tmp_path / name)["online"]
    assert losses["channels_last"] == pytest.approx(losses["contiguous"], rel=0, abs=1e-5)
    assert not same(weights["channels_last"], weights["contiguous"])  # the format reached the convs
    assert all(tensor.is_contiguous() for tensor in weights["channels_last"].values())


def test_a_step_of_ssql_is_the_same_in_channels_last(toy, tmp_path):
    gradients = {}
    for memory_format in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        network, _ = build_network(config(toy, tmp_path))
        network.double().to(memory_format=memory_format)
        views = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
        network(views.unbind(0), 0).backward()
        gradients[memory_format] = [parameter.grad for parameter in network.parameters()]
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_bfloat16_trains(toy, tmp_path):
    """At 32 pixels: on the CPU torch leaves parts of a bfloat16 gradient unwritten where a conv sees a single pixel."""
    pretrain(config(toy, tmp_path, AMP=True, OPTIM__EPOCHS=1, DATA__SIZE=32))
    assert all(tensor.dtype != torch.bfloat16 for tensor in content(tmp_path)["online"].values())
    assert all(tensor.isfinite().all() for tensor in content(tmp_path)["online"].values())


def test_knn_evaluation_does_not_change_the_run(whole, toy, tmp_path):
    pretrain(config(toy, tmp_path, MONITOR__PERIOD=2))
    assert same(content(tmp_path), content(whole))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "knn/FP" in line]
    assert [line["step"] for line in evaluations] == [3, 5]
    assert all(0 <= line[f"knn/{bits}"] <= 100 for line in evaluations for bits in ("FP", "2w4a"))


@pytest.mark.slow
def test_every_config_describes_a_network(tmp_path):
    for path in sorted(MINI.parent.glob("*.yaml")):
        cfg = read_config(path)
        is_quantized = "ssql" in path.name or "pact" in path.name or path.name.startswith(("mini", "small", "own"))
        assert is_quantized == (cfg.ssql is not None)
        assert cfg.output_dir.endswith(path.stem)
        if "50" not in path.name and "34" not in path.name:
            with torch.device("meta"):  # no weights are drawn
                build_network(cfg)


@pytest.mark.parametrize(
    ("method", "name", "options"),
    [
        ("byol", "BYOL", {"momentum.momentum": 0.7}),
        ("moco", "MoCo v2", {"momentum.momentum": 0.7, "temperature": 0.3, "queue.keys.shape": (50, 16)}),
        ("simclr", "SimCLR", {"temperature": 0.3, "cross": True}),
    ],
)
def test_a_config_reaches_the_method(method, name, options, toy, tmp_path):
    values = {"momentum": 0.7, "temperature": 0.3, "queue": 50, "cross": True, "last_norm": True}
    taken = get_hyperparameters(METHODS.get(method)).keys() & values.keys()
    own = {f"{method.upper()}__{name.upper()}": values[name] for name in taken}
    for is_ssql in (True, False):
        cfg = config(toy, tmp_path, METHOD=method, SSQL__ENABLED=is_ssql, **own)
        network, _ = build_network(cfg)
        built = network.method if is_ssql else network
        assert isinstance(network, SSQL) == is_ssql
        assert build_metadata(cfg).method == (f"SSQL-{name}" if is_ssql else name)
        assert {path: attrgetter(path)(built) for path in options} == options
        linears = [layer for layer in built.encoder.projector if isinstance(layer, torch.nn.Linear)]
        assert ({layer.out_features for layer in linears[:-1]}, linears[-1].out_features) == ({8}, 16)
        assert isinstance(built.encoder.projector[-1], torch.nn.BatchNorm1d) == (method == "byol")


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DATA.TRAIN": ""}, "DATA.TRAIN is empty"),
        ({"DATA.TRAIN": "nowhere"}, "nowhere"),
        ({"OPTIM.BATCH": "1"}, "BatchNorm needs two images in each process"),
        ({"OPTIM.BATCH": "64"}, "has 48 images and OPTIM.BATCH is 64; reduce"),
        ({"OPTIM.EPOCHS": "0"}, "OPTIM.EPOCHS must be 1 or more, got 0"),
        ({"OPTIM.LR": "-0.1"}, "OPTIM.LR must be 0 or more, got -0.1"),
        ({"OPTIM.MOMENTUM": "5"}, "OPTIM.MOMENTUM must be 0 to 0.9999, got 5"),
        ({"SIMSIAM.HIDDEN": "0"}, "SIMSIAM: hidden must be more than 0, got 0"),
        ({"DATA.WORKERS": "-1"}, "DATA.WORKERS must be 0 to 1024, got -1"),
        ({"MONITOR.IMAGES": "0"}, "MONITOR.IMAGES must be 2 or more, got 0"),
        ({"DEVICE": "gpu"}, "DEVICE 'gpu' is not available"),
        ({"SEED": "4294967296"}, "SEED must be 0 to 4294967295, got 4294967296"),
        ({"METHOD": "byol", "BYOL.MOMENTUM": "1.5"}, "BYOL: momentum must be 0 to 1, got 1.5"),
        ({"METHOD": "simclr", "SIMCLR.TEMPERATURE": "0"}, "SIMCLR: temperature must be more than 0, got 0"),
        ({"METHOD": "moco", "MOCO.QUEUE": "15"}, "MOCO: a queue of 15 keys is smaller than a batch of 24"),
        (
            {"METHOD": "byol", "SSQL.QUANTIZE_TARGETS": "True"},
            "SSQL cannot quantize the targets of BYOL; set SSQL.QUANTIZE_TARGETS False",
        ),
        ({"DATA.RECIPE": "cifr"}, "did you mean 'cifar'"),
        ({"SSQL.WEIGHT_BITS": "[1, 8]"}, "SampledBits.weight must be integers from 2 to 16, got (1, 8)"),
        ({"SSQL.SCHEME": "act=mse", "SSQL.ACT_BITS": "[4, 16]"}, "act=mse supports 2 to 10 bits, not 16"),
        ({"SSQL.ACT_BITS": "[8]"}, "SSQL.ACT_BITS must be the lowest and the highest bit-width"),
        ({"BACKBONE": "resnet19"}, "there is no backbone 'resnet19'"),
        ({"SSQL.SCHEME": "mze"}, "unknown weight quantizer 'mze'; did you mean 'mse'?"),
        ({"SSQL.SCHEME": "norms=re-estimated"}, "SSQL cannot train with norms=re-estimated"),
        ({"MONITOR.PERIOD": "1", "MONITOR.SCHEME": "act=centred"}, "'centred' is no activation quantizer"),
        ({"OPTIM.LR": "1e30"}, "step 1 at "),
        ({"INIT": "nowhere.pth"}, "nowhere.pth"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(change, message, toy, tmp_path, capsys):
    given = keys(toy, tmp_path / "out", **{key.replace(".", "__"): value for key, value in change.items()})
    assert message in refused(capsys, "pretrain", "--config-file", str(MINI), *given)


def test_a_loss_that_is_not_finite_is_an_error_and_keeps_the_checkpoint(toy, tmp_path, monkeypatch):
    from ssql_det.pretrain import loop

    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda optim, step, per: 1e30 if step == 2 else rate(optim, step, per))
    with pytest.raises(UserError, match=rf"step 3,? at {SampledBits(5)(3)}"):
        pretrain(config(toy, tmp_path))
    assert content(tmp_path)["resume"]["steps"] == 2


def test_a_gradient_that_is_not_finite_is_an_error_before_the_weights_are(toy, tmp_path, monkeypatch):
    from ssql_det.pretrain import loop

    compute_loss = loop._compute_loss

    def plant_nan(model, network, device, amp, step, part, views):
        loss = compute_loss(model, network, device, amp, step, part, views)
        if step == 5:  # the last one
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(loop, "_compute_loss", plant_nan)
    with pytest.raises(UserError, match=rf"a gradient is not finite in step 5 at {SampledBits(5)(5)}; lower OPTIM.LR"):
        pretrain(config(toy, tmp_path))
    assert content(tmp_path)["resume"]["steps"] == 4


def test_gradients_are_finite_although_their_norm_is_not():
    from ssql_det.pretrain.loop import _check_finite

    network = torch.nn.Linear(2, 2)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    _check_finite(torch.tensor(1.0), network, "step 3")
    network.bias.grad[1] = float("inf")
    with pytest.raises(UserError, match="a gradient is not finite in step 3"):
        _check_finite(torch.tensor(1.0), network, "step 3")


def test_unreadable_images_are_tolerated_up_to_the_limit(toy, tmp_path):
    crops = tmp_path / "crops"
    shutil.copytree(toy / "crops", crops)
    bad = sorted((crops / "train").rglob("*.png"))[:3]
    for path in bad:
        path.write_bytes(b"no image")
    pretrain(config(toy, tmp_path / "out", DATA__TRAIN=crops, DATA__MOST_BAD_IMAGES=3))
    with pytest.raises(UserError, match=r"DATA\.MOST_BAD_IMAGES"):
        pretrain(config(toy, tmp_path / "other", DATA__TRAIN=crops, DATA__MOST_BAD_IMAGES=2))


def test_a_bad_image_in_a_probe_is_named(whole, toy, tmp_path, capsys):
    crops = tmp_path / "crops"
    shutil.copytree(toy / "crops", crops)
    bad = sorted((crops / "test").rglob("*.png"))[0]
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(SystemExit):
        main(["probe", "knn", "--checkpoint", str(whole / "checkpoint.pth"), "--data", str(crops)])
    assert f"error: {bad} cannot be read" in capsys.readouterr().err


# ---- probes --------------------------------------------------------------------------------------------------------


def test_a_probe_writes_a_row_for_each_width(whole, toy, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    given = ["--checkpoint", str(whole / "checkpoint.pth"), "--data", str(toy / "crops"), "--recipe", "digits"]
    main(["probe", "knn", "linear", *given, "--bits", "FP,4w4a,2w4a", "--out", str(out)])
    results = rows.read_rows(out)
    assert [row.bits for row in results] == ["FP", "4w4a", "2w4a"]
    assert {(row.method, row.seed, row.scope) for row in results} == {("SSQL", 5, "backbone")}
    assert all(0 <= row.metrics[f"{kind}/top1"] <= 100 for row in results for kind in ("knn", "linear"))
    assert results[2].metrics["MB"] < results[1].metrics["MB"] < results[0].metrics["MB"]
    assert "knn/top1" in capsys.readouterr().out
    assert {(row.scheme, row.calibration) for row in results} == {("minmax", Calibration(48, 0, "crops"))}
    others = ("norms=re-estimated", "weight=centred, act=mse")
    for scheme in others:
        main(["probe", "knn", *given, "--bits", "2w4a", "--scheme", scheme, "--out", str(tmp_path / "other.jsonl")])
    assert [row.scheme for row in rows.read_rows(tmp_path / "other.jsonl")] == list(others)
