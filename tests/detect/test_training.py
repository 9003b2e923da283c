"""The training loop: what it leaves behind, a resumed run is the run that was not stopped, what it refuses."""

import itertools
import json
import re
import shutil

import pytest
import torch
import yaml
from detect.making import C4, FPN, config
from detect.runs import (
    LOOKING,
    StoppedError,
    arguments,
    curves,
    ends_as,
    farthest,
    final,
    first_gradients,
    same,
    sampling_the_first,
    stopped_in_step,
)
from kills import kill_until_done
from refusals import refused
from torch import nn

from ssql_det.backbones import build_backbone
from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.config import load_config
from ssql_det.core.errors import UserError
from ssql_det.core.reader import read_tensors
from ssql_det.d2 import get_detection_dataset_dicts
from ssql_det.detect import train as training
from ssql_det.detect.stream import training_batches
from ssql_det.detect.train import train
from ssql_det.detect.weights import build_detector

PERIOD, LAST = 3, 8  # of checkpoints, and the last iteration, in every tiny config


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone to begin with."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    torch.save(build_backbone("narrow_resnet").module.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    assert train(config(C4, folder), C4) == folder / "model_final.pth"
    return folder


# ---- what a run leaves behind --------------------------------------------------------------------------------------


def test_a_run_leaves_its_config_its_curves_and_its_checkpoints(whole):
    again, given = (
        yaml.safe_load(cfg.dump()) for cfg in (load_config(config(C4), whole / "config.yaml"), config(C4, whole))
    )
    assert again == given
    names = {path.name for path in whole.iterdir()}
    assert {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"} <= names
    assert "model_0000008.pth" not in names
    assert (whole / "last_checkpoint").read_text() == "model_final.pth"
    assert any(path.name.startswith("events.out") for path in (whole / "tensorboard").iterdir())
    assert not [name for name in names if name.startswith(".")]

    (line,) = [json.loads(each) for each in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert line["step"] == LAST
    assert losses | {"total_loss", "lr", "bad_images", "time"} <= set(line)
    assert line["lr"] == pytest.approx(0.0005)  # behind the step at 6
    assert line["bad_images"] == 0


@pytest.mark.parametrize(("name", "last"), [("model_0000002", 2), ("model_0000005", 5), ("model_final", LAST)])
def test_a_checkpoint_has_all_that_detectron2_writes_and_says_where_it_stands(name, last, whole):
    content = read_tensors(whole / f"{name}.pth")
    assert {"model", "optimizer", "scheduler", "iteration"} <= set(content)
    assert content["iteration"] == last
    assert set(content["model"]) == set(build_detector(config(C4)).state_dict())
    assert content["scheduler"]["last_epoch"] == last + 1


def test_a_run_with_the_same_seed_is_the_same_and_with_another_is_not(whole, tmp_path):
    again = final(train(config(C4, tmp_path / "same"), C4).parent)
    assert same(again["model"], final(whole)["model"])
    train(config(C4, tmp_path / "other", SEED=4), C4)
    assert not same(final(tmp_path / "other")["model"], final(whole)["model"])


def test_workers_do_not_change_what_is_trained(whole, tmp_path):
    train(config(C4, tmp_path, DATALOADER__NUM_WORKERS=2), C4)
    assert same(final(tmp_path), final(whole) | {"rng": final(tmp_path)["rng"]})


def test_a_mask_rcnn_trains(tmp_path):
    train(config(FPN, tmp_path, SOLVER__MAX_ITER=2, SOLVER__STEPS=(), TEST__PRECISE_BN__NUM_ITER=1), FPN)
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["loss_mask"] > 0


def test_a_run_begins_with_the_weights_it_is_given_and_remembers_them(weights, tmp_path):
    cfg = config(C4, tmp_path, MODEL__WEIGHTS=weights, SOLVER__BASE_LR=0.0, TEST__PRECISE_BN__ENABLED=False)
    train(cfg, C4)
    trained, given = final(tmp_path), read_tensors(weights)
    assert torch.equal(trained["model"]["backbone.stem.conv1.weight"], given["conv1.weight"])
    assert torch.equal(trained["model"]["roi_heads.res5.0.conv2.weight"], given["layer4.0.conv2.weight"])
    assert trained["ssql_det"]["arch"] == "narrow_resnet"
    assert trained["ssql_det"]["source"]["name"] == "narrow.pth"
    assert json.loads((tmp_path / "coverage.json").read_text())["percent"] == 100


def test_precise_bn_gives_a_norm_the_statistics_of_all_its_images(tmp_path):
    """Against the first norm, computed by hand."""
    cfg = config(C4, tmp_path, SOLVER__MAX_ITER=1, SOLVER__STEPS=(), TEST__PRECISE_BN__NUM_ITER=3)
    train(cfg, C4)
    model = build_detector(cfg)
    state = final(tmp_path)["model"]
    model.load_state_dict(state)
    batches = training_batches(cfg, cfg.SEED + 1)
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


# ---- resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3, 4, 5, 9])
def test_a_resumed_run_is_the_run_that_was_not_stopped(number, whole, tmp_path):
    with stopped_in_step(number):
        train(config(C4, tmp_path), C4)
    assert (tmp_path / "last_checkpoint").exists() == (number > PERIOD)
    train(config(C4, tmp_path), C4, resume=True)
    assert same(final(tmp_path), final(whole))  # weights, statistics, momenta, schedule, generators, scalars
    assert curves(tmp_path) == curves(whole)  # medians over iterations before and after the stop


def test_a_run_is_resumed_again_and_again(whole, tmp_path):
    for number in (5, 2, 3):
        with stopped_in_step(number):
            train(config(C4, tmp_path), C4, resume=True)
    train(config(C4, tmp_path), C4, resume=True)
    assert same(final(tmp_path), final(whole))


@pytest.mark.parametrize("keys", [{"SSQL__MICRO_BATCHES": 2}, {"DATALOADER__NUM_WORKERS": 2}])
def test_it_goes_on_at_its_place_in_the_data_however_batches_are_made(keys, tmp_path):
    train(config(C4, tmp_path / "whole", **keys), C4)
    with stopped_in_step(6):
        train(config(C4, tmp_path / "stopped", **keys), C4)
    train(config(C4, tmp_path / "stopped", **keys), C4, resume=True)
    assert same(final(tmp_path / "stopped"), final(tmp_path / "whole"))


def test_a_finished_run_stays_as_it_is(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    train(config(C4, tmp_path / "run"), C4, resume=True)
    assert same(final(tmp_path / "run"), final(whole))
    assert (tmp_path / "run/metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_the_images_go_on_where_they_stopped(monkeypatch, tmp_path):
    """Which are fed, by iteration; whatever else of a run is the same or not."""
    fed = []

    def spy(model, batch, *rest):
        fed.append([each["file_name"] for each in batch])
        return losses(model, batch, *rest)

    losses = training._losses
    monkeypatch.setattr(training, "_losses", spy)
    train(config(C4, tmp_path / "whole"), C4)
    expected = fed.copy()
    fed.clear()
    with stopped_in_step(5):
        train(config(C4, tmp_path / "stopped"), C4)
    assert fed == expected[:5]
    fed.clear()
    train(config(C4, tmp_path / "stopped"), C4, resume=True)
    assert fed == expected[PERIOD:]


LONGER = {"SOLVER__MAX_ITER": 25}  # so that there is more to be killed, and a second line of curves


@pytest.fixture(scope="module")
def longer(in_process, tmp_path_factory):
    """A run in a process of its own that was not stopped, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("longer")
    ended = in_process(arguments(folder / "run", **LONGER), folder / "log")
    assert ended["status"] == 0, (folder / "log").read_text()
    return folder / "run", ended["seconds"]


def test_a_killed_run_resumes_to_the_same_bits(longer, in_process, tmp_path):
    """kill -9 at moments that nobody chose, most of them between checkpoints."""
    killed = []
    for attempt in itertools.count():
        out = tmp_path / f"attempt {attempt}"
        command = arguments(out, "--resume", **LONGER)
        killed += kill_until_done(in_process, command, tmp_path / "log", longer[1])
        assert ends_as(out, longer[0]), f"killed after {killed} s"
        if len(killed) >= 10:
            break


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_to_the_same_bits(longer, in_process, tmp_path):
    """As soon as there is a file, in the middle of it, and when it is there but no tag names it yet."""
    out, log = tmp_path / "run", tmp_path / "log"
    command = arguments(out, "--resume", **LONGER)
    for pattern, size in ((".model_*", 0), (".model_*", 2_000_000), (".model_*", 5_000_000), ("model_*.pth", 0)):
        assert in_process(command, log, pattern=f"{out}/{pattern}", size=size)["status"] == -9, log.read_text()
    assert in_process(command, log)["status"] == 0, log.read_text()
    assert ends_as(out, longer[0])


def test_a_kill_in_the_middle_of_a_checkpoint_leaves_the_one_before(whole, monkeypatch, tmp_path):
    def torn(content, file):
        file.write(b"half of it")
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        save, count = torch.save, []

        def second(content, file):
            count.append(1)
            return torn(content, file) if len(count) == 2 else save(content, file)

        patch.setattr(torch, "save", second)
        with pytest.raises(StoppedError):
            train(config(C4, tmp_path), C4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not (tmp_path / "model_0000005.pth").exists()
    train(config(C4, tmp_path), C4, resume=True)
    assert same(final(tmp_path)["model"], final(whole)["model"])


def test_without_a_checkpoint_resuming_is_beginning(whole, tmp_path):
    train(config(C4, tmp_path), C4, resume=True)
    assert same(final(tmp_path), final(whole))


def test_a_run_goes_on_with_its_config_alone(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    keys = {"SSQL__EXTRA_NORM": "", "SOLVER__BASE_LR": 0.01, "SOLVER__MAX_ITER": 20, "SSQL__EVAL_PERIOD": 10}
    said = r"the run in .*run has SOLVER\.BASE_LR 0\.005 \(now 0\.01\), SSQL\.EXTRA_NORM 'BN' \(now ''\); resume with"
    with pytest.raises(UserError, match=said):
        train(config(C4, tmp_path / "run", **keys), C4, resume=True)


def test_a_checkpoint_of_another_network_is_not_resumed(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    content = final(whole)
    del content["model"]["roi_heads.res5.norm.weight"]
    torch.save(content, tmp_path / "run" / "model_final.pth")
    with pytest.raises(UserError, match=r"model_final\.pth does not fit this config .*; resume with the config of"):
        train(config(C4, tmp_path / "run"), C4, resume=True)


def test_a_checkpoint_without_state_is_not_resumed(whole, tmp_path):
    content = final(whole)
    torch.save({key: content[key] for key in ("model", "iteration")}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    shutil.copy(whole / "config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"model_final\.pth cannot be resumed from: it has no optimizer; train anew"):
        train(config(C4, tmp_path), C4, resume=True)


# ---- micro-batches -------------------------------------------------------------------------------------------------


def gradients(tmp_path, micro_batches, **keys):
    """With as many regions of each image and no norm that mixes images."""
    frozen = {"MODEL__RESNETS__NORM": "FrozenBN", "SSQL__EXTRA_NORM": "", "SOLVER__IMS_PER_BATCH": 4}
    with sampling_the_first():
        return first_gradients(config(C4, tmp_path, SSQL__MICRO_BATCHES=micro_batches, **frozen, **keys))


@pytest.fixture
def one_size(monkeypatch):
    """All records are one image: nothing of a batch is padding."""
    records = get_detection_dataset_dicts(("toy_voc_2007_trainval",))
    wide = [each for each in records if each["width"] > each["height"]]
    monkeypatch.setattr("ssql_det.detect.stream.get_detection_dataset_dicts", lambda *args, **kwargs: wide[:1])


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(parts, one_size, tmp_path):
    keys = {"INPUT__MIN_SIZE_TRAIN": (64,), "INPUT__RANDOM_FLIP": "none"}
    assert farthest(gradients(tmp_path, parts, **keys), gradients(tmp_path, 1, **keys)) <= 1e-3


def test_each_part_of_a_batch_counts_the_same_however_many_regions_it_has(tmp_path):
    """Detectron2 divides by what one forward has sampled: the mean of two parts is not quite the mean over all."""
    keys = {"INPUT__MIN_SIZE_TRAIN": (64,), "INPUT__RANDOM_FLIP": "none"}
    sampled = {"MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 512}  # more than there are: all are taken
    whole, parts = (gradients(tmp_path, count, **keys, **sampled) for count in (1, 2))
    assert 1e-3 < farthest(parts, whole) <= 0.5


@pytest.mark.parametrize("parts", [0, -1, 3])
def test_micro_batches_divide_a_batch(parts, tmp_path):
    with pytest.raises(UserError, match=rf"SSQL\.MICRO_BATCHES must divide SOLVER\.IMS_PER_BATCH 4, got {parts}"):
        train(config(C4, tmp_path / "run", SSQL__MICRO_BATCHES=parts, SOLVER__IMS_PER_BATCH=4), C4)
    assert not (tmp_path / "run").exists()


# ---- looks ---------------------------------------------------------------------------------------------------------


def test_looking_leaves_rows_and_does_not_change_what_is_trained(whole, tmp_path):
    train(config(C4, tmp_path, **LOOKING), C4)
    looks = [(row.checkpoint, row.bits, row.dataset, row.scope) for row in rows.read(tmp_path / "looks.jsonl")]
    places = [f"iteration {iteration}" for iteration in (3, 7, LAST)]
    assert looks == [(place, bits, "toy_voc_2007_test", "all") for place in places for bits in ("FP", "4w4a")]
    ours, theirs = final(tmp_path), final(whole)
    ours["model"], theirs["model"] = (
        {name: value for name, value in each["model"].items() if not name.endswith("num_batches_tracked")}
        for each in (ours, theirs)
    )
    assert same(ours, theirs)
    lines = [json.loads(each) for each in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "toy_voc_2007_test/4w4a/bbox/AP50" in line] == [3, 7, LAST]


def test_a_resumed_run_has_each_look_once(tmp_path):
    with stopped_in_step(6):
        train(config(C4, tmp_path, **LOOKING), C4)
    train(config(C4, tmp_path, **LOOKING), C4, resume=True)
    looks = [(row.checkpoint, row.bits) for row in rows.read(tmp_path / "looks.jsonl")]
    assert len(looks) == len(set(looks)) == 6


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        pytest.param({"SSQL__SCOPE": "head"}, "SSQL.SCOPE is backbone or all, got 'head'"),
        pytest.param({"SSQL__CALIB_IMAGES": 0}, "SSQL.CALIB_IMAGES must be 1 or more, got 0"),
        ({"SSQL__EVAL_BITS": ["99"]}, "99"),
    ],
)
def test_a_look_that_cannot_be_is_refused_before_the_training(keys, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        train(config(C4, tmp_path / "run", **(LOOKING | keys)), C4)
    assert not (tmp_path / "run").exists()


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_in_one_sentence(whole, monkeypatch, capsys, tmp_path):
    losses, seen = training._losses, []

    def at_last_nan(*args):
        seen.append(1)
        return losses(*args) if len(seen) < 5 else losses(*args) | {"loss_cls": torch.tensor(float("nan"))}

    with monkeypatch.context() as patch:
        patch.setattr(training, "_losses", at_last_nan)
        line = refused(capsys, *arguments(tmp_path))
    assert line == (
        "error: loss_cls is nan at iteration 4; lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, and train in "
        "another OUTPUT_DIR"
    )
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert same(final_model(tmp_path, "model_0000002"), final_model(whole, "model_0000002"))


def final_model(folder, name):
    return read_tensors(folder / f"{name}.pth")["model"]


def test_a_training_that_diverges_ends_in_one_sentence(capsys, tmp_path):
    keys = {"SOLVER__BASE_LR": 1e9, "SOLVER__WARMUP_ITERS": 0, "SOLVER__CHECKPOINT_PERIOD": 1}
    line = refused(capsys, *arguments(tmp_path, **keys))
    assert "SOLVER.BASE_LR" in line
    assert not (tmp_path / "model_final.pth").exists()


def test_another_number_of_classes_is_refused_before_anything_is_written(capsys, tmp_path):
    for classes in (9, 20):
        line = refused(capsys, *arguments(tmp_path / "run", MODEL__ROI_HEADS__NUM_CLASSES=classes))
        assert f"has 10 classes and MODEL.ROI_HEADS.NUM_CLASSES is {classes}; set it to 10" in line
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_not_written_over(whole, capsys, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = contents(tmp_path / "run")
    line = refused(capsys, *arguments(tmp_path / "run", SOLVER__BASE_LR=0.001))
    assert "run holds a run already; say --resume to go on with it, or choose another OUTPUT_DIR" in line
    assert contents(tmp_path / "run") == before


def test_neither_is_what_it_says_of_its_weights(weights, capsys, tmp_path):
    train(config(C4, tmp_path, MODEL__WEIGHTS=weights, SOLVER__MAX_ITER=1, SOLVER__STEPS=()), C4)
    before = contents(tmp_path)
    line = refused(capsys, *arguments(tmp_path, MODEL__WEIGHTS=weights, SSQL__EXTRA_NORM=""))
    assert "holds a run already" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("folder", ["none", "~nobody-is-called-so"])
def test_toy_data_that_nobody_made_are_missing_with_a_hint(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", folder)
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *arguments(tmp_path / "run"))
    assert f"there are no toy data in {folder}; make them with `ssql-det make-toy-data {folder}`" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["DATASETS__TRAIN", "DATASETS__TEST"])
def test_an_unknown_data_set_comes_with_the_nearest_name(key, capsys, tmp_path):
    line = refused(capsys, *arguments(tmp_path / "run", **{key: ("toy_voc_2007_trianval",)}))
    assert "there is no data set 'toy_voc_2007_trianval'; did you mean 'toy_voc_2007_trainval'?" in line
    assert not (tmp_path / "run").exists()


def test_a_bad_image_ends_the_run_or_is_counted_in_its_curves(monkeypatch, capsys, tmp_path):
    records = [dict(each) for each in get_detection_dataset_dicts(("toy_voc_2007_trainval",))[:4]]
    records[1]["file_name"] = str(tmp_path / "missing.jpg")
    monkeypatch.setattr("ssql_det.detect.stream.get_detection_dataset_dicts", lambda *args, **kwargs: records)
    line = refused(capsys, *arguments(tmp_path / "stop"))
    assert f"cannot train on {tmp_path}/missing.jpg: " in line
    train(config(C4, tmp_path / "skip", SSQL__ON_BAD_IMAGE="skip"), C4)
    (line,) = map(json.loads, (tmp_path / "skip/metrics.jsonl").read_text().splitlines())
    assert line["bad_images"] == 1


def test_eval_only_prints_the_metrics_of_a_detector(whole, capsys, tmp_path):
    main(arguments(tmp_path / "run", "--eval-only", MODEL__WEIGHTS=whole / "model_final.pth"))
    said = capsys.readouterr().out
    assert "toy_voc_2007_test" in said
    assert all(re.search(rf"bbox/{name}\s+[\d.]+", said) for name in ("AP", "AP50", "AP75"))
    assert not (tmp_path / "run").exists()
