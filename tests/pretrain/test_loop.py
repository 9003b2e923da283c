"""A pretraining from crops to a checkpoint: resumed it is the same run, and what goes wrong is one sentence."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from pretrain import two_processes
from refusals import refused

import ssql_det
from ssql_det.cli.main import main
from ssql_det.convert import read
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.ranks import launch
from ssql_det.pretrain.checkpoint import Run
from ssql_det.pretrain.config import build_network, read_config
from ssql_det.pretrain.loop import pretrain
from ssql_det.quant import SampledBits

MINI = Path(ssql_det.__file__).parents[1] / "configs" / "pretrain" / "mini.yaml"
TINY = {
    "DIM": 16,
    "HIDDEN": 8,
    "DATA.SIZE": 16,
    "OPTIM.BATCH": 16,
    "OPTIM.EPOCHS": 4,
    "OPTIM.LR": 0.02,
    "OPTIM.WARMUP_EPOCHS": 1.0,
    "DEVICE": "cpu",
    "MONITOR.PERIOD": 0,
    "PERIODS.LOG": 1,
    "SEED": 5,
}


def keys(toy, out, **more):
    values = TINY | {"DATA.TRAIN": toy / "crops", "OUTPUT_DIR": out}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    return [str(each) for pair in values.items() for each in pair]


def config(toy, out, **more):
    return read_config(MINI, keys(toy, out, **more))


pytestmark = pytest.mark.usefixtures("one_thread", "logging_as_it_was")


@pytest.fixture(scope="module")
def whole(toy, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    pretrain(config(toy, folder))
    return folder


def content(folder):
    return torch.load(folder / "checkpoint.pth")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# ---- what comes out ------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_a_backbone_that_convert_reads(whole):
    checkpoint = read(whole / "checkpoint.pth")
    assert (checkpoint.architecture.name, checkpoint.source.format) == ("narrow_resnet", "ssql_det")
    assert (checkpoint.facts.method, checkpoint.facts.seed, checkpoint.facts.input.channels) == ("SSQL", 5, "RGB")
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())


def test_weights_move_and_curves_are_written(whole, toy, tmp_path):
    torch.manual_seed(5)
    _, backbone = build_network(config(toy, tmp_path))
    assert not torch.equal(content(whole)["online"]["conv1.weight"], backbone.module.conv1.weight)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))  # 48 crops to train, 16 at a time, 4 epochs
    assert all(0 < line["spread"] < 1.5 and -1 <= line["loss"] <= 1 for line in lines)


def test_the_same_seed_is_the_same_run_and_another_is_not(whole, toy, tmp_path):
    pretrain(config(toy, tmp_path / "again"))
    assert same(content(tmp_path / "again"), content(whole))
    pretrain(config(toy, tmp_path / "other", SEED=6))
    assert not same(content(tmp_path / "other")["online"], content(whole)["online"])


def test_workers_change_nothing(whole, toy, tmp_path):
    pretrain(config(toy, tmp_path, DATA__WORKERS=2))
    assert same(content(tmp_path), content(whole))


def test_without_ssql_it_is_the_method_alone(toy, tmp_path):
    pretrain(config(toy, tmp_path, SSQL__ENABLED=False))
    assert read(tmp_path / "checkpoint.pth").facts.method == "SimSiam"


def test_it_begins_with_any_backbone(whole, toy, tmp_path):
    network, _ = build_network(config(toy, tmp_path, INIT=whole / "checkpoint.pth"))
    begun = network.method.encoder.backbone.state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in content(whole)["online"].items())
    with pytest.raises(UserError, match="is a narrow_resnet and does not fit this network"):
        build_network(config(toy, tmp_path, INIT=whole / "checkpoint.pth", BACKBONE="resnet18"))


def test_two_processes_with_synchronized_norms_are_one(toy, tmp_path):
    few = {"SYNC_NORM": True, "OPTIM__EPOCHS": 1, "OPTIM__LR": 0.001}
    two_processes.pretrained(MINI, keys(toy, tmp_path / "one", **few))
    launch(two_processes.pretrained, MINI, keys(toy, tmp_path / "two", **few), processes=2)
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert len(two["resume"]["rng"]) == 2
    launch(two_processes.pretrained, MINI, keys(toy, tmp_path / "half", **few, AMP=True, DATA__SIZE=32), processes=2)
    for part in ("online", "heads"):
        for name, value in one[part].items():  # float32, and at few bits a rounding may tip over
            assert (two[part][name] - value).abs().max() <= 2e-3 * value.abs().max().clamp(min=1e-3), name


def test_bfloat16_trains(toy, tmp_path):
    """At 32 pixels: on the CPU torch leaves parts of a bfloat16 gradient unwritten where a conv sees a single pixel."""
    pretrain(config(toy, tmp_path, AMP=True, OPTIM__EPOCHS=1, DATA__SIZE=32))
    assert all(tensor.dtype != torch.bfloat16 for tensor in content(tmp_path)["online"].values())
    assert all(tensor.isfinite().all() for tensor in content(tmp_path)["online"].values())


def test_looks_on_the_way_do_not_change_it(whole, toy, tmp_path):
    pretrain(config(toy, tmp_path, MONITOR__PERIOD=2))
    assert same(content(tmp_path), content(whole))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "knn/FP" in line]
    assert [line["step"] for line in looks] == [5, 11]
    assert all(0 <= line[f"knn/{bits}"] <= 100 for line in looks for bits in ("FP", "2w4a"))


def test_every_config_describes_a_network(tmp_path):
    for path in sorted(MINI.parent.glob("*.yaml")):
        cfg = read_config(path)
        assert ("ssql" in path.name or path.name.startswith(("mini", "small"))) == cfg.SSQL.ENABLED
        assert cfg.OUTPUT_DIR.endswith(path.stem)
        if "50" not in path.name and "34" not in path.name:
            build_network(cfg)


# ---- stopped and resumed -------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_to_the_same_bits(whole, in_process, toy, tmp_path):
    """kill -9 at five moments that nobody chose."""
    log, out, moments = tmp_path / "log", tmp_path / "killed", random.Random()
    command = ["pretrain", "--config-file", str(MINI), "--resume", *keys(toy, out)]
    ended = in_process(["pretrain", "--config-file", str(MINI), *keys(toy, tmp_path / "timed")], log)
    assert ended["status"] == 0, log.read_text()
    times = [moments.uniform(0.2, 0.7) * ended["seconds"] for _ in range(5)]
    for seconds in times:
        in_process(command, log, seconds=seconds)
    assert in_process(command, log)["status"] == 0, log.read_text()
    ours, theirs = content(out), content(whole)
    for each in (ours, theirs):  # nothing draws from the others, and nobody seeds CUDA's here
        each["resume"]["rng"] = [generators["cpu"] for generators in each["resume"]["rng"]]
    assert same(ours, theirs), f"killed after {times} s"
    assert not list(out.glob(".*"))


class StoppedError(Exception):
    """As a kill, but within this process."""


def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(whole, toy, monkeypatch, tmp_path):
    save, count = torch.save, []

    def torn(content, file):
        count.append(1)
        if len(count) == 2:
            file.write(b"half of it")
            raise StoppedError
        save(content, file)

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(StoppedError):
        pretrain(config(toy, tmp_path))
    assert content(tmp_path)["resume"]["steps"] == 3
    monkeypatch.setattr(torch, "save", save)
    pretrain(config(toy, tmp_path), resume=True)
    assert same(content(tmp_path), content(whole))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(12))


def test_a_full_disk_leaves_the_last_checkpoint(toy, tmp_path, small_disk, monkeypatch):
    save = Run.save

    def once(run, folder, steps):
        path = save(run, folder, steps)
        small_disk()
        return path

    monkeypatch.setattr(Run, "save", once)
    with pytest.raises(UserError, match=r"could not write .*checkpoint\.pth"):
        pretrain(config(toy, tmp_path))
    assert content(tmp_path)["resume"]["steps"] == 3


def test_a_finished_run_goes_on_where_it_ended(whole, toy, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = content(tmp_path / "run")
    pretrain(config(toy, tmp_path / "run"), resume=True)
    assert same(content(tmp_path / "run"), before)


def test_another_config_is_not_resumed(whole, toy):
    with pytest.raises(
        UserError, match=r"has HIDDEN 8 \(now 9\), OPTIM\.LR 0\.02 \(now 0\.1\); resume with its config"
    ):
        pretrain(config(toy, whole, OPTIM__LR=0.1, HIDDEN=9), resume=True)
    with pytest.raises(UserError, match="holds a run already; say --resume"):
        pretrain(config(toy, whole))


def test_other_images_are_not_resumed(whole, toy, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pth").read_bytes()
    crops = tmp_path / "crops"
    shutil.copytree(toy / "crops", crops)
    next(iter(sorted((crops / "train").rglob("*.png")))).unlink()
    config_file = tmp_path / "run" / "config.yaml"
    config_file.write_text(config_file.read_text().replace(str(toy / "crops"), str(crops)))
    with pytest.raises(UserError, match="the images are not those that it began with"):
        pretrain(config(toy, tmp_path / "run", DATA__TRAIN=crops), resume=True)
    assert (tmp_path / "run" / "checkpoint.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda found: found.pop("resume"), "it has no resume"),
        (lambda found: found["resume"].pop("optimizer"), "it has no optimizer"),
        (lambda found: found["resume"].update(steps=700), "it is 700 steps on, of 12"),
        (lambda found: found["resume"].update(steps=-7), "it is -7 steps on, of 12"),
        (lambda found: found["resume"].update(rng=[5]), "cannot be resumed from"),
        (lambda found: found["resume"].update(rng=None), "cannot be resumed from"),
        (lambda found: found.update(online=[1]), "cannot be resumed from"),
        (lambda found: found["heads"].popitem(), "cannot be resumed from"),
    ],
)
def test_a_damaged_checkpoint_is_not_resumed(damage, said, whole, toy, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    found = content(whole)
    damage(found)
    torch.save(found, tmp_path / "run" / "checkpoint.pth")
    with pytest.raises(UserError, match=said):
        pretrain(config(toy, tmp_path / "run"), resume=True)


def test_a_backbone_of_other_channels_is_no_beginning(whole, toy, tmp_path):
    found = content(whole)
    found["ssql_det"]["input"]["channels"] = "BGR"
    torch.save(found, tmp_path / "bgr.pth")
    with pytest.raises(UserError, match="was trained on BGR images and is fed RGB here; turn it"):
        build_network(config(toy, tmp_path, INIT=tmp_path / "bgr.pth"))


def test_a_resumed_run_does_not_want_its_beginning_again(whole, toy, tmp_path):
    shutil.copy(whole / "checkpoint.pth", tmp_path / "init.pth")
    given = {"INIT": tmp_path / "init.pth", "OPTIM__EPOCHS": 1}
    pretrain(config(toy, tmp_path / "run", **given))
    (tmp_path / "init.pth").unlink()
    pretrain(config(toy, tmp_path / "run", **given), resume=True)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"DATA.TRAIN": ""}, "DATA.TRAIN is empty"),
        ({"DATA.TRAIN": "nowhere"}, "nowhere"),
        ({"OPTIM.BATCH": "1"}, "a BatchNorm needs two images a process"),
        ({"OPTIM.BATCH": "64"}, "has 48 images and OPTIM.BATCH is 64; lower it"),
        ({"OPTIM.EPOCHS": "0"}, "OPTIM.EPOCHS must be 1 or more, got 0"),
        ({"OPTIM.LR": "-0.1"}, "OPTIM.LR must be 0 or more, got -0.1"),
        ({"OPTIM.MOMENTUM": "5"}, "OPTIM.MOMENTUM must be less than 1, got 5"),
        ({"HIDDEN": "0"}, "HIDDEN must be 1 or more, got 0"),
        ({"DATA.WORKERS": "-1"}, "DATA.WORKERS must be 0 or more, got -1"),
        ({"MONITOR.IMAGES": "0"}, "MONITOR.IMAGES must be 2 or more, got 0"),
        ({"DEVICE": "gpu"}, "DEVICE 'gpu' is not here"),
        ({"SEED": "4294967296"}, "SEED must be less than 2**32"),
        ({"METHOD": "simsam"}, "METHOD 'simsam' is not here; did you mean 'simsiam'?"),
        ({"DATA.RECIPE": "cifr"}, "did you mean 'cifar'"),
        ({"SSQL.WEIGHT_BITS": "[1, 8]"}, "bits must be 2 to 16"),
        ({"SSQL.ACT_BITS": "[8]"}, "SSQL.ACT_BITS is the least and the most"),
        ({"BACKBONE": "resnet19"}, "there is no backbone 'resnet19'"),
        ({"OPTIM.LR": "1e30"}, "step 1 at "),
        ({"INIT": "nowhere.pth"}, "nowhere.pth"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(change, said, toy, tmp_path, capsys):
    given = keys(toy, tmp_path / "out", **{key.replace(".", "__"): value for key, value in change.items()})
    assert said in refused(capsys, "pretrain", "--config-file", str(MINI), *given)


def test_a_loss_that_is_no_number_names_the_step_and_the_bits_and_keeps_the_checkpoint(toy, tmp_path, monkeypatch):
    from ssql_det.pretrain import loop

    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda cfg, step, per: 1e30 if step == 4 else rate(cfg, step, per))
    with pytest.raises(UserError, match=rf"step 5,? at {SampledBits(5)(5)}"):
        pretrain(config(toy, tmp_path))
    assert content(tmp_path)["resume"]["steps"] == 3


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
    found = rows.read(out)
    assert [row.bits for row in found] == ["FP", "4w4a", "2w4a"]
    assert {(row.method, row.seed, row.scope) for row in found} == {("SSQL", 5, "backbone")}
    assert all(0 <= row.metrics[f"{kind}/top1"] <= 100 for row in found for kind in ("knn", "linear"))
    assert found[2].metrics["MB"] < found[1].metrics["MB"] < found[0].metrics["MB"]
    assert "knn/top1" in capsys.readouterr().out
    main(["probe", "knn", *given, "--bits", "2w4a", "--recalibrate-bn", "--out", str(tmp_path / "bn.jsonl")])
    (row,) = rows.read(tmp_path / "bn.jsonl")
    assert row.calibration.endswith("MinMax, BN recalibrated")
