"""The training loop: what it writes, and what it refuses."""

import json
import logging
import re
import shutil

import pytest
import torch
import yaml
from support.detect.configs import C4, FPN, LAST, config
from support.detect.training_runs import is_equal, read_final, train_arguments
from support.refusals import refused
from torch import nn

from ssql_det.backbones import build_backbone
from ssql_det.cli.main import main
from ssql_det.core.config import load_config
from ssql_det.core.errors import UserError
from ssql_det.core.unpickler import read_tensors
from ssql_det.d2 import get_detection_dataset_dicts
from ssql_det.detect import training_step
from ssql_det.detect.detector import build_detector
from ssql_det.detect.train import _log_duration, train
from ssql_det.detect.train_loader import build_train_loader
from ssql_det.detect.training_step import PassLosses, read_finite_losses


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone to begin with."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    torch.save(build_backbone("narrow_resnet").module.state_dict(), path)
    return path


@pytest.mark.parametrize("has_backbone", [True, False])
def test_it_says_what_it_begins_with_and_how_long_it_takes(has_backbone, weights, toy_data_in_place, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ssql_det")
    train(config(C4, tmp_path, MODEL__WEIGHTS=weights if has_backbone else ""), C4)
    messages = [record.getMessage() for record in caplog.records]
    assert any(message.startswith("MODEL.WEIGHTS is empty") for message in messages) != has_backbone
    (duration,) = [message for message in messages if "s per iteration" in message]
    assert duration.endswith(f": less than 1 min for the remaining {LAST - 4}, without evaluations")


@pytest.mark.parametrize(("seconds", "text"), [(0.01, "less than 1 min"), (0.9, "15 min"), (36.0, "10.0 hours")])
def test_a_duration_is_in_minutes_or_hours(seconds, text, caplog):
    caplog.set_level(logging.INFO, "ssql_det")
    _log_duration(seconds, 1000)
    assert caplog.messages == [f"{seconds:.2f} s per iteration: {text} for the remaining 1000, without evaluations"]


# ---- what a run leaves behind --------------------------------------------------------------------------------------


def test_a_run_leaves_its_config_its_curves_and_its_checkpoints(whole_run):
    loaded = load_config(config(C4), whole_run / "config.yaml")
    again, given = (yaml.safe_load(cfg.dump()) for cfg in (loaded, config(C4, whole_run)))
    assert again == given
    names = {path.name for path in whole_run.iterdir()}
    assert {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"} <= names
    assert "model_0000008.pth" not in names
    assert (whole_run / "last_checkpoint").read_text() == "model_final.pth"
    assert any(path.name.startswith("events.out") for path in (whole_run / "tensorboard").iterdir())
    assert not [name for name in names if name.startswith(".")]

    (line,) = [json.loads(each) for each in (whole_run / "metrics.jsonl").read_text().splitlines()]
    losses = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert line["step"] == LAST
    assert losses | {"total_loss", "lr", "bad_images", "time"} <= set(line)
    assert line["lr"] == pytest.approx(0.0005)  # behind the step at 6
    assert line["bad_images"] == 0


@pytest.mark.parametrize(("name", "last"), [("model_0000002", 2), ("model_0000005", 5), ("model_final", LAST)])
def test_a_checkpoint_has_detectron2s_keys_and_its_iteration(name, last, whole_run):
    content = read_tensors(whole_run / f"{name}.pth")
    assert {"model", "optimizer", "scheduler", "iteration"} <= set(content)
    assert content["iteration"] == last
    assert set(content["model"]) == set(build_detector(config(C4)).state_dict())
    assert content["scheduler"]["last_epoch"] == last + 1


def test_a_run_with_the_same_seed_is_the_same_and_with_another_is_not(whole_run, tmp_path):
    again = read_final(train(config(C4, tmp_path / "same"), C4).parent)
    assert is_equal(again["model"], read_final(whole_run)["model"])
    train(config(C4, tmp_path / "other", SEED=4), C4)
    assert not is_equal(read_final(tmp_path / "other")["model"], read_final(whole_run)["model"])


def test_workers_do_not_change_what_is_trained(whole_run, tmp_path):
    train(config(C4, tmp_path, DATALOADER__NUM_WORKERS=2), C4)
    assert is_equal(read_final(tmp_path), read_final(whole_run) | {"rng": read_final(tmp_path)["rng"]})


def test_a_mask_rcnn_trains(tmp_path):
    train(config(FPN, tmp_path, SOLVER__MAX_ITER=2, SOLVER__STEPS=(), TEST__PRECISE_BN__NUM_ITER=1), FPN)
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["loss_mask"] > 0


def test_a_run_loads_the_given_weights_and_records_them(weights, tmp_path):
    cfg = config(C4, tmp_path, MODEL__WEIGHTS=weights, SOLVER__BASE_LR=0.0, TEST__PRECISE_BN__ENABLED=False)
    train(cfg, C4)
    trained, given = read_final(tmp_path), read_tensors(weights)
    assert torch.equal(trained["model"]["backbone.stem.conv1.weight"], given["conv1.weight"])
    assert torch.equal(trained["model"]["roi_heads.res5.0.conv2.weight"], given["layer4.0.conv2.weight"])
    assert trained["ssql_det"]["arch"] == "narrow_resnet"
    assert trained["ssql_det"]["source"]["name"] == "narrow.pth"
    assert json.loads((tmp_path / "coverage.json").read_text())["percent"] == 100


def test_precise_bn_equals_the_statistics_of_all_images(tmp_path):
    """Against the first norm, computed by hand."""
    cfg = config(C4, tmp_path, SOLVER__MAX_ITER=1, SOLVER__STEPS=(), TEST__PRECISE_BN__NUM_ITER=3)
    train(cfg, C4)
    model = build_detector(cfg)
    state = read_final(tmp_path)["model"]
    model.load_state_dict(state)
    batches = build_train_loader(cfg, cfg.SEED + 1)
    pixels = []
    for _ in range(3):
        x = model.preprocess_image(next(batches)).tensor
        with torch.no_grad():
            x = nn.functional.conv2d(x, model.backbone.stem.conv1.weight, stride=2, padding=3)
        pixels.append(x.transpose(0, 1).flatten(1))
    pixels = torch.cat(pixels, dim=1).double()
    norm = "backbone.stem.conv1.norm"
    for name, expected in (("mean", pixels.mean(1)), ("var", pixels.var(1, correction=0))):
        torch.testing.assert_close(state[f"{norm}.running_{name}"].double(), expected, rtol=1e-4, atol=1e-5)


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_in_one_sentence(whole_run, monkeypatch, capsys, tmp_path):
    losses, seen = training_step.compute_losses, []

    def at_last_nan(*args):
        seen.append(1)
        return losses(*args) if len(seen) < 5 else losses(*args) | {"loss_cls": torch.tensor(float("nan"))}

    with monkeypatch.context() as patch:
        patch.setattr(training_step, "compute_losses", at_last_nan)
        line = refused(capsys, *train_arguments(tmp_path))
    assert line == (
        "error: loss_cls is nan at iteration 4; lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and train in "
        "another OUTPUT_DIR"
    )
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert is_equal(final_model(tmp_path, "model_0000002"), final_model(whole_run, "model_0000002"))


def test_gradients_are_finite_although_their_norm_is_not():
    model, recorded = nn.Linear(2, 2), [PassLosses({"loss_cls": torch.tensor(1.0)})]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    assert read_finite_losses(recorded, model, iteration=3) == [{"loss_cls": 1.0}]
    model.bias.grad[1] = float("inf")
    with pytest.raises(UserError, match="a gradient is not finite at iteration 3"):
        read_finite_losses(recorded, model, iteration=3)


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_weights(whole_run, monkeypatch, capsys, tmp_path):
    losses, seen = training_step.compute_losses, []

    def plant_nan(*args):
        computed = losses(*args)
        if len(seen) == 4:
            computed["loss_cls"].register_hook(lambda gradient: gradient * float("nan"))
        seen.append(1)
        return computed

    with monkeypatch.context() as patch:
        patch.setattr(training_step, "compute_losses", plant_nan)
        line = refused(capsys, *train_arguments(tmp_path))
    assert line.startswith("error: a gradient is not finite at iteration 4; lower SOLVER.BASE_LR")
    assert is_equal(final_model(tmp_path, "model_0000002"), final_model(whole_run, "model_0000002"))


@pytest.mark.parametrize("name", ["channels_last", "contiguous"])
def test_the_memory_format_moves_a_detector_in_its_last_digits(name, whole_run, tmp_path):
    train(config(C4, tmp_path, SSQL_DET__MEMORY_FORMAT=name), C4)
    ours, expected = (final_model(each, "model_0000002") for each in (tmp_path, whole_run))
    assert is_equal(ours, expected) == (name == "channels_last")  # the default
    for key, value in expected.items():
        assert (ours[key] - value).abs().max() <= 1e-4 * value.abs().max().clamp(min=1e-2), key


def final_model(folder, name):
    return read_tensors(folder / f"{name}.pth")["model"]


def test_a_training_that_diverges_ends_in_one_sentence(capsys, tmp_path):
    keys = {"SOLVER__BASE_LR": 1e9, "SOLVER__WARMUP_ITERS": 0, "SOLVER__CHECKPOINT_PERIOD": 1}
    line = refused(capsys, *train_arguments(tmp_path, **keys))
    assert "SOLVER.BASE_LR" in line
    assert not (tmp_path / "model_final.pth").exists()


def test_another_number_of_classes_is_refused_before_anything_is_written(capsys, tmp_path):
    for classes in (9, 20):
        line = refused(capsys, *train_arguments(tmp_path / "run", MODEL__ROI_HEADS__NUM_CLASSES=classes))
        assert f"has 10 classes and MODEL.ROI_HEADS.NUM_CLASSES is {classes}; set it to 10" in line
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(whole_run, capsys, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    line = refused(capsys, *train_arguments(tmp_path / "run", SOLVER__BASE_LR=0.001))
    assert "run already holds a run; add --resume to continue it, or choose another OUTPUT_DIR" in line
    assert contents(tmp_path / "run") == before


def test_the_coverage_file_of_an_existing_run_is_not_overwritten(weights, capsys, tmp_path):
    train(config(C4, tmp_path, MODEL__WEIGHTS=weights, SOLVER__MAX_ITER=1, SOLVER__STEPS=()), C4)
    before = contents(tmp_path)
    line = refused(capsys, *train_arguments(tmp_path, MODEL__WEIGHTS=weights, SSQL_DET__EXTRA_NORM=""))
    assert "already holds a run" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("folder", ["none", "~nobody-is-called-so"])
def test_missing_toy_data_are_an_error_with_the_command_that_makes_them(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", folder)
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *train_arguments(tmp_path / "run"))
    assert f"there are no toy data in {folder}; make them with `ssql-det make-toy-data {folder}`" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["DATASETS__TRAIN", "DATASETS__TEST"])
def test_an_unknown_data_set_is_an_error_with_the_most_similar_name(key, capsys, tmp_path):
    line = refused(capsys, *train_arguments(tmp_path / "run", **{key: ("toy_voc_2007_trianval",)}))
    assert "unknown data set 'toy_voc_2007_trianval'; did you mean 'toy_voc_2007_trainval'?" in line
    assert not (tmp_path / "run").exists()


def test_a_bad_image_stops_the_run_or_is_counted_in_its_curves(monkeypatch, capsys, tmp_path):
    records = [dict(each) for each in get_detection_dataset_dicts(("toy_voc_2007_trainval",))[:4]]
    records[1]["file_name"] = str(tmp_path / "missing.jpg")
    monkeypatch.setattr("ssql_det.detect.train_loader.get_detection_dataset_dicts", lambda *args, **kwargs: records)
    line = refused(capsys, *train_arguments(tmp_path / "stop"))
    assert f"cannot train on {tmp_path}/missing.jpg: " in line
    train(config(C4, tmp_path / "skip", SSQL_DET__ON_BAD_IMAGE="skip"), C4)
    (line,) = map(json.loads, (tmp_path / "skip/metrics.jsonl").read_text().splitlines())
    assert line["bad_images"] == 1


def test_eval_only_prints_the_metrics_of_a_detector(whole_run, capsys, tmp_path):
    main(train_arguments(tmp_path / "run", "--eval-only", MODEL__WEIGHTS=whole_run / "model_final.pth"))
    said = capsys.readouterr().out
    assert "toy_voc_2007_test" in said
    assert all(re.search(rf"bbox/{name}\s+[\d.]+", said) for name in ("AP", "AP50", "AP75"))
    assert not (tmp_path / "run").exists()
