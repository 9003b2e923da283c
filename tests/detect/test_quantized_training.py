"""Trainings at low bit-widths: which bit-widths, resuming, what they leave behind, and what they refuse."""

import itertools
import json
from functools import partial

import pytest
import torch
from support.detect.configs import C4, FPN, config, write_tiny_config
from support.detect.training_runs import (
    WITH_EVALUATIONS,
    is_equal,
    read_final,
    read_run,
    stopping_in_step,
    train_arguments,
)
from support.kills import repeat_until_killed, run_whole
from support.refusals import refused

from ssql_det.backbones import build_backbone
from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.config import load_config
from ssql_det.core.errors import UserError
from ssql_det.detect import training_step
from ssql_det.detect.detector import build_detector
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.train import train
from ssql_det.quant import Bits, SampledBits

NODE = "SSQL_DET__QUANTIZED_TRAINING__"
ENABLED = {f"{NODE}ENABLED": True}


def read_bits(monkeypatch, cfg, **how):
    """Train; returns the bit-widths of the passes of each iteration."""
    found = []

    def spy(recorded, *args):
        found.append([str(each.bits) for each in recorded])
        return read(recorded, *args)

    read = training_step.read_finite_losses
    monkeypatch.setattr("ssql_det.detect.train.read_finite_losses", spy)
    train(cfg, C4, **how)
    return found


# ---- bit-widths ----------------------------------------------------------------------------------------------------


def test_each_iteration_trains_the_bits_of_its_schedule(monkeypatch, tmp_path):
    keys = ENABLED | {f"{NODE}START": 2, "SOLVER__MAX_ITER": 5, "SOLVER__STEPS": ()}
    found = read_bits(monkeypatch, config(C4, tmp_path, **keys))
    drawn = [str(SampledBits(seed=3)(iteration)) for iteration in range(5)]
    assert found == [["FP"], ["FP"], *(["FP", bits] for bits in drawn[2:])]


def test_a_sandwich_trains_the_lowest_bits_too():
    cfg = config(C4, **ENABLED, **{f"{NODE}SAMPLING": "sandwich"})
    training = QuantizedTraining.from_config(cfg)
    assert [training.choose_bits(step) for step in range(9)] == [
        (Bits(2, 4), SampledBits(seed=3)(step)) for step in range(9)
    ]


def test_skewed_bits_are_the_lower_of_two_draws():
    training = QuantizedTraining.from_config(config(C4, **ENABLED, **{f"{NODE}SAMPLING": "skewed"}))
    assert training.schedule == SampledBits(seed=3, draws=2)


@pytest.mark.parametrize("name", ["toy_voc_narrow_c4", "toy_coco_narrow_fpn", "voc_r18_c4", "coco_mask_r50_fpn"])
def test_an_any_precision_config_is_its_base_trained_at_the_bits_of_ssql(name):
    cfg, base = config(f"{name}_anyprecision.yaml"), config(f"{name}.yaml")
    assert QuantizedTraining.from_config(base) is None
    assert QuantizedTraining.from_config(cfg) == QuantizedTraining(SampledBits(seed=3))
    assert cfg.SSQL_DET.pop("QUANTIZED_TRAINING") != base.SSQL_DET.pop("QUANTIZED_TRAINING")
    assert cfg.SSQL_DET == base.SSQL_DET
    assert cfg.SOLVER == base.SOLVER


# ---- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["minmax", "placement=integer"])
def test_a_mask_rcnn_is_trained_in_bfloat16_with_micro_batches_and_evaluations(scheme, tmp_path):
    keys = {f"{NODE}SCHEME": scheme, f"{NODE}SAMPLING": "sandwich", "SSQL_DET__MICRO_BATCHES": 2}
    short = {"SOLVER__MAX_ITER": 2, "SOLVER__STEPS": (), "SOLVER__AMP__ENABLED": True, "SSQL_DET__EVAL_PERIOD": 2}
    train(config(FPN, tmp_path, **ENABLED, **keys, **(WITH_EVALUATIONS | short)), FPN)
    (line, *_) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    losses = ("total_loss", "loss_cls", "loss_mask", "loss_rpn_cls")
    assert all(line[f"quantized_{name}"] > 0 and line[f"quantized_{name}"] != line[name] for name in losses)
    assert {row.bits for row in rows.read_rows(tmp_path / "evaluations.jsonl")} == {"FP", "4w4a"}


@pytest.fixture(scope="module")
def longer(in_process, tmp_path_factory):
    """A run in a process of its own that was not stopped, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("longer")
    return folder / "run", run_whole(in_process, train_arguments(folder / "run", **KILLED), folder / "log")


KILLED = ENABLED | {  # with all that a checkpoint can hold beside the detector
    "SOLVER__MAX_ITER": 20,
    "SSQL_DET__MICRO_BATCHES": 2,
    "SSQL_DET__CALIB_IMAGES": 2,
    f"{NODE}START": 2,
    f"{NODE}SCHEME": "weight=lsq, act=lsq",
    f"{NODE}NORMS": "switchable",
}


def test_a_killed_run_resumes_to_the_same_bits(longer, in_process, tmp_path):
    """kill -9 at moments that nobody chose."""
    whole, seconds = longer
    arguments = partial(train_arguments, **KILLED)
    for out, killed in repeat_until_killed(in_process, lambda out: arguments(out, "--resume"), tmp_path, seconds, 3):
        assert read_run(out) == read_run(whole), f"killed after {killed} s"


def test_a_run_is_resumed_only_with_its_schedule_of_bits(tmp_path):
    with stopping_in_step(5):
        train(config(C4, tmp_path, **ENABLED), C4)
    message = r"has SSQL_DET\.QUANTIZED_TRAINING\.WEIGHT_BITS \[2, 8\] \(now \[3, 8\]\); resume with its config"
    with pytest.raises(UserError, match=message):
        train(config(C4, tmp_path, **ENABLED, **{f"{NODE}WEIGHT_BITS": [3, 8]}), C4, resume=True)
    with pytest.raises(UserError, match=r"has SSQL_DET\.QUANTIZED_TRAINING\.ENABLED True \(now False\)"):
        train(config(C4, tmp_path), C4, resume=True)


def test_init_begins_with_a_whole_detector_and_trains_a_tenth_of_the_schedule(whole_run, tmp_path):
    keys = {"SOLVER.MAX_ITER": 29, "SOLVER.STEPS": (10,), "SOLVER.BASE_LR": 0.0, "TEST.PRECISE_BN.ENABLED": False}
    write_tiny_config(tmp_path / "long.yaml", "toy_voc_narrow_c4_anyprecision.yaml", **keys)
    init, out = whole_run / "model_final.pth", tmp_path / "run"
    main(["train-det", "--config-file", f"{tmp_path}/long.yaml", "--init", f"{init}", "OUTPUT_DIR", f"{out}"])
    tuned, model = read_final(out), read_final(whole_run)["model"]
    weights = [name for name, _ in build_detector(config(C4)).named_parameters()]
    assert is_equal(*({name: each[name] for name in weights} for each in (tuned["model"], model)))
    assert tuned["iteration"] == 1
    saved = load_config(config(C4), out / "config.yaml")
    assert (saved.SOLVER.MAX_ITER, saved.SOLVER.STEPS, saved.SOLVER.WARMUP_ITERS) == (2, (1,), 0)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss_cls", "loss_rpn_loc"])
def test_a_loss_that_is_not_finite_at_a_bit_width_names_it(name, monkeypatch, capsys, tmp_path):
    compute, passes = training_step.compute_losses, itertools.count()

    def spoilt(*args):
        losses = compute(*args)
        return losses | {name: losses[name] * float("nan")} if next(passes) == 5 else losses  # the third quantized one

    monkeypatch.setattr(training_step, "compute_losses", spoilt)
    line = refused(capsys, *train_arguments(tmp_path, **ENABLED))
    assert line.startswith(f"error: quantized_{name} is nan at iteration 2 at {SampledBits(seed=3)(2)}; lower SOLVER.")
    assert not (tmp_path / "last_checkpoint").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"SCHEME": "act=mse", "ACT_BITS": [4, 12]}, "act=mse supports 2 to 10 bits, not 12"),
        ({"SCHEME": "weight=brecq"}, "a detector cannot be trained with weight=brecq: rounding is learned afterwards"),
        ({"SCHEME": "norms=matched"}, "a detector cannot be trained with norms=matched; in training norms use"),
        ({"SCHEME": "equalize=yes"}, "a detector cannot be trained with equalize=yes; use equalize=no"),
        ({"WEIGHT_BITS": [1, 8]}, r"must be integers from 2 to 16, got \(1, 8\)"),
        ({"WEIGHT_BITS": [4]}, r"QUANTIZED_TRAINING\.WEIGHT_BITS must be the lowest and the highest bit-width"),
        ({"FIXED_BITS": "1w4a"}, "weight bits must be 2 to 16"),
        ({"SAMPLING": "often"}, "SAMPLING must be uniform or skewed or sandwich, got 'often'"),
        ({"SCOPE": "head"}, r"QUANTIZED_TRAINING\.SCOPE must be backbone"),
        ({"START": -1}, r"QUANTIZED_TRAINING\.START must be 0 or more, got -1"),
        ({"SCOPE": "backbone+neck"}, "scope backbone.neck needs an FPN"),
    ],
)
def test_what_cannot_be_trained_is_an_error_before_anything_is_written(keys, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(config(C4, tmp_path / "run", **ENABLED, **{NODE + key: value for key, value in keys.items()}), C4)
    assert not (tmp_path / "run").exists()


def test_init_needs_a_detector(capsys, tmp_path):
    torch.save(build_backbone("narrow_resnet").module.state_dict(), tmp_path / "backbone.pth")
    line = refused(capsys, *train_arguments(tmp_path / "run", "--init", f"{tmp_path}/backbone.pth"))
    assert line.startswith(f"error: {tmp_path}/backbone.pth has only a backbone; train a detector from it")
