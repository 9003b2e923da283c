"""Detectors trained with norms of their own for each bit-width of weights, and towards their float outputs."""

import copy
from dataclasses import replace

import pytest
import torch
from support.detect.configs import C4, FPN, LAST, config, randomize_norms, select_boxes_in_float32
from support.detect.processes import SWITCHABLE
from support.detect.sweeps import MANY_DETECTIONS, SETTINGS, run_sweep
from support.detect.training_runs import (
    is_equal,
    largest_difference,
    read_final,
    read_run,
    read_scalars,
    stopping_in_step,
)

from ssql_det.core.errors import UserError
from ssql_det.core.rows import read_rows
from ssql_det.d2 import EventStorage, build_optimizer
from ssql_det.detect.any_precision import AnyPrecisionStep
from ssql_det.detect.detector import build_detector, load_trained_detector
from ssql_det.detect.detector_outputs import recording_outputs
from ssql_det.detect.distillation_terms import TERMS, distillation_loss
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.sampling_replay import recording_samples, replaying_samples
from ssql_det.detect.train import train
from ssql_det.detect.train_loader import build_train_loader
from ssql_det.quant import Bits, FixedBits, Quantization, Scheme

FILE = "quantization.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("switchable")
    train(config(C4, folder, **SWITCHABLE), C4)
    return folder


@pytest.mark.parametrize("number", [2, 8])
def test_a_resumed_run_has_the_same_norms(number, trained, tmp_path):
    with stopping_in_step(number):
        train(config(C4, tmp_path, **SWITCHABLE), C4)
    train(config(C4, tmp_path, **SWITCHABLE), C4, resume=True)
    assert read_run(tmp_path) == read_run(trained)
    assert (tmp_path / FILE).exists()


def test_a_finished_run_writes_the_file_that_it_lacks(trained, tmp_path):
    run = tmp_path / "run"
    train(config(C4, run, **SWITCHABLE), C4)
    (run / FILE).unlink()
    train(config(C4, run, **SWITCHABLE), C4, resume=True)
    assert read_run(run) == read_run(trained)


def test_only_the_norms_of_drawn_widths_change(trained):
    training = QuantizedTraining.from_config(config(C4, **SWITCHABLE))
    drawn = {bits.weight for iteration in range(LAST + 1) for bits in training.choose_bits(iteration)}
    assert 0 < len(drawn) < 7
    state = read_final(trained)["trained"]["norms"]
    initial = build_step(config(C4, **SWITCHABLE))[0].switchable_norms.state_dict()
    for bits in range(2, 9):
        names = [key for key in state if key.startswith(f"sets.{bits}.") and "num_batches" not in key]
        changed = {name for name in names if not torch.equal(state[name], initial[name])}
        assert bool(changed) == (bits in drawn)
    assert "quantized_loss_distillation" in read_scalars(trained)[-1]


def build_step(cfg):
    torch.manual_seed(0)
    model = build_detector(cfg)
    return AnyPrecisionStep(model, QuantizedTraining.from_config(cfg)), model


def test_their_learning_rate_and_decay_are_those_of_norms():
    cfg = config(C4, SOLVER__WEIGHT_DECAY_NORM=0.25, **SWITCHABLE)
    step, model = build_step(cfg)
    optimizer = build_optimizer(cfg, torch.nn.ModuleDict({"model": model, **step.trained}))
    decays = {each: group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    rates = {group["lr"] for group in optimizer.param_groups}
    assert {decays[each] for each in step.switchable_norms.parameters()} == {0.25}
    assert len(rates) == 1


def test_a_sweep_uses_the_norms_of_its_width(trained, tmp_path):
    weights, settings = trained / "model_final.pth", replace(SETTINGS, scheme=Scheme(norms="switchable"))
    rows = run_sweep(weights, tmp_path / "own", "4w4a,4w8a", settings, trained / FILE)
    shared = run_sweep(weights, tmp_path / "shared", "4w4a")
    model, _ = load_trained_detector(config(C4, MODEL__WEIGHTS=weights))
    norms = Quantization.load(trained / FILE, model).switchable_norms
    num_bytes = sum(tensor.nbytes for tensor in norms.get_tensors(4).values())
    for row in rows:
        assert row.scheme == "norms=switchable"
        assert row.metrics["MB"] == pytest.approx(shared[0].metrics["MB"] + num_bytes / 1e6)
    with pytest.raises(UserError, match=r"not learned at 9w9a \(learned at: 2w, 3w, 4w, 5w, 6w, 7w, 8w\)"):
        run_sweep(weights, tmp_path / "untrained", "9", settings, trained / FILE)


def test_evaluations_during_training_use_them_too(tmp_path):
    keys = {"SSQL_DET__EVAL_PERIOD": 9, "SSQL_DET__EVAL_BITS": ["FP", "4w4a"], **MANY_DETECTIONS}
    train(config(C4, tmp_path / "run", **SWITCHABLE, **keys), C4)
    weights, settings = tmp_path / "run/model_final.pth", replace(SETTINGS, scheme=Scheme(norms="switchable"))
    swept = run_sweep(weights, tmp_path / "sweep", "FP,4", settings, tmp_path / "run" / FILE)
    evaluated = read_rows(tmp_path / "run/evaluations.jsonl")
    assert [(row.bits, row.scheme, row.metrics) for row in evaluated] == [
        (row.bits, row.scheme, row.metrics) for row in swept
    ]
    with pytest.raises(UserError, match=r"EVAL_BITS has 9w9a, but norms are trained for weights of 2, 3, 4, 5"):
        train(config(C4, tmp_path / "other", **SWITCHABLE, **keys | {"SSQL_DET__EVAL_BITS": ["9w9a"]}), C4)


def test_two_processes_train_the_same_norms(run_in_processes):
    folder = run_in_processes("save_switchable_norms")
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    assert is_equal(first, second)


@pytest.mark.parametrize("name", [C4, FPN])
def test_distillation_adds_the_gradient_of_its_loss(name):
    cfg = config(name)
    torch.manual_seed(0)
    model = select_boxes_in_float32(randomize_norms(build_detector(cfg)).double()).train()
    batch, bits = next(build_train_loader(cfg, seed=1)), Bits(4, 4)

    def take_step(weight, detector):
        step = AnyPrecisionStep(detector, QuantizedTraining(FixedBits(bits), distillation=weight))
        torch.manual_seed(7)
        with EventStorage():
            return step(detector, [batch], 0)

    plain, distilled, by_hand = (copy.deepcopy(model) for _ in range(3))
    take_step(0.0, plain)
    losses = take_step(0.3, distilled)[1].losses
    step = AnyPrecisionStep(by_hand, QuantizedTraining(FixedBits(bits)))
    torch.manual_seed(7)
    recording = recording_outputs(by_hand, with_features=True)
    with EventStorage(), step.quantization.observing(), recording_samples(by_hand) as samples, recording as record:
        by_hand(batch)
    target = record.collect().detach()
    with step.quantizing(bits), replaying_samples(by_hand, samples):
        with recording_outputs(by_hand, with_features=True) as record:
            by_hand(batch)
        loss = 0.3 * distillation_loss(record.collect(), target, TERMS)
        torch.testing.assert_close(losses["loss_distillation"], loss, rtol=1e-9, atol=0)
        (loss / 2).backward()
    gradients = [{name: each.grad for name, each in found.named_parameters()} for found in (plain, distilled, by_hand)]
    zeros = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    added = {name: zeros[name] if grad is None else grad for name, grad in gradients[2].items()}
    expected = {name: gradients[0][name] + added[name] for name in added}
    assert largest_difference(gradients[1], expected) <= 1e-9
    assert largest_difference(gradients[1], gradients[0]) > 1e-3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"NORMS": "own"}, "NORMS must be shared or switchable, got 'own'"),
        ({"NORMS": "switchable", "FIXED_BITS": "4a"}, "NORMS switchable needs bits of weights, but FIXED_BITS 4a has"),
        ({"SCHEME": "norms=switchable"}, r"SCHEME: .* norms=switchable; .* set .*QUANTIZED_TRAINING.NORMS switchable"),
        ({"DISTILLATION": -1.0}, "DISTILLATION must be 0 or more, got -1"),
        (
            {"DISTILLATION_TERMS": ["boxes", "clases"]},
            r"has 'clases'; did you mean 'classes'\? \(known: objectness, anch",
        ),
        ({"DISTILLATION_TERMS": []}, r"DISTILLATION_TERMS must be a list of one or more texts, got \[\]"),
    ],
)
def test_invalid_options_are_refused(keys, message):
    keys = {f"SSQL_DET__QUANTIZED_TRAINING__{key}": value for key, value in keys.items()}
    with pytest.raises(UserError, match=message):
        QuantizedTraining.from_config(config(C4, **keys))
