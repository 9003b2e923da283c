"""Quantizers with parameters are trained with a detector: optimizer, checkpoint, resuming, what cannot be trained."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.detect.configs import C4, FPN, LAST, config
from support.detect.sweeps import MANY_DETECTIONS, SETTINGS, run_sweep
from support.detect.training_runs import read_final, stopping_in_step

from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.core.rows import read_rows
from ssql_det.detect.any_precision import AnyPrecisionStep
from ssql_det.detect.detector import build_detector
from ssql_det.detect.quantized_training import QuantizedTraining
from ssql_det.detect.train import train
from ssql_det.quant import ACTIVATIONS, Bits, RangeQuantizer, Scheme

NODE = "SSQL_DET__QUANTIZED_TRAINING__"
LSQ = {f"{NODE}QUANTIZER_LR_FACTOR": 0.5, f"{NODE}QUANTIZER_WEIGHT_DECAY": 0.01}

pytestmark = pytest.mark.slow


def build_step(name):
    cfg = config(name)
    return AnyPrecisionStep(build_detector(cfg), QuantizedTraining.from_config(cfg))


@pytest.mark.parametrize("name", [C4, FPN])
def test_the_configs_train_steps_of_weights_and_activations(name):
    step = build_step(name.replace(".yaml", "_lsq_4bit.yaml"))
    assert step.training.choose_bits(0) == (Bits(4, 4),)
    quantization = step.quantization
    assert all(next(quantization[point].parameters(), None) is not None for point in quantization.points)


def test_a_resumed_run_trains_the_same_steps(toy_data_in_place, tmp_path):
    name = C4.replace(".yaml", "_lsq_4bit.yaml")
    train(config(name, tmp_path / "whole", **LSQ), name)
    with stopping_in_step(5):
        train(config(name, tmp_path / "stopped", **LSQ), name)
    train(config(name, tmp_path / "stopped", **LSQ), name, resume=True)
    for file in ("model_final.pth", "quantization.safetensors"):
        assert sha256(tmp_path / "whole" / file) == sha256(tmp_path / "stopped" / file)
    whole = read_final(tmp_path / "whole")
    groups = whole["optimizer"]["param_groups"]
    assert [(group["lr_factor"], group["weight_decay"]) for group in groups if "lr_factor" in group] == [(0.5, 0.01)]
    quantizers = whole["trained"]["quantizers"]
    initial = quantizers["roi_heads.res5.0.conv2:input/learned.initial"]
    step = quantizers["roi_heads.res5.0.conv2:input/learned.trained.2"]  # of 4 bits
    assert initial.isfinite().tolist() == [index == 2 for index in range(9)]
    assert step.isfinite()
    assert step != initial[2]
    assert "roi_heads.res5.0.conv2:input/ends" in quantizers  # the ranges that the steps started from


@pytest.mark.parametrize("start", [0, 5])
def test_evaluations_during_training_use_them_and_leave_them(start, toy_data_in_place, tmp_path):
    """Also before they are trained, and at bits that were not drawn yet."""
    keys = {
        "SSQL_DET__CALIB_IMAGES": 4,
        f"{NODE}ENABLED": True,
        f"{NODE}SCHEME": "weight=lsq, act=lsq",
        f"{NODE}START": start,
        **MANY_DETECTIONS,
    }
    train(config(C4, tmp_path / "quiet", **keys), C4)
    keys |= {"SSQL_DET__EVAL_PERIOD": 2, "SSQL_DET__EVAL_BITS": ["8w8a", "3w5a"]}
    train(config(C4, tmp_path / "run", **keys), C4)
    quiet, run = (tmp_path / name / "quantization.safetensors" for name in ("quiet", "run"))
    found, expected = map(load_file, (run, quiet))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].nan_to_num(), expected[name].nan_to_num()) for name in expected)
    settings = replace(SETTINGS, scheme=Scheme.parse(keys[f"{NODE}SCHEME"]))
    swept = run_sweep(run.parent / "model_final.pth", tmp_path / "sweep", "8,3w5a", settings, run)
    evaluated = read_rows(run.parent / "evaluations.jsonl")
    assert [(row.bits, row.scheme, row.metrics) for row in evaluated[-2:]] == [
        (row.bits, row.scheme, row.metrics) for row in swept
    ]
    assert len(evaluated) == 2 * (LAST + 2) // 2
    with pytest.raises(UserError, match=r"SSQL_DET\.SCHEME act=mse has other quantizers than are trained, lsq;"):
        train(config(C4, tmp_path / "other", **keys, SSQL_DET__SCHEME="act=mse"), C4)


class Stretched(RangeQuantizer):
    """The observed range, times a trained factor, the same at all bit-widths."""

    def __init__(self, spec):
        super().__init__(spec)
        self.stretch = torch.nn.Parameter(torch.ones(()))

    def choose_range(self, bits):
        return tuple(bound * self.stretch for bound in self.observer.range)


def test_schemes_that_cannot_be_trained(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS._objects, "stretched", Stretched)
    for scheme, keys, message in (
        ("act=stretched", {}, "act=stretched at several bit-widths: its parameters are the same at all of them"),
        ("act=lsq", {"ACT_BITS": "[4, 12]"}, "act=lsq supports 2 to 10 bits, not 12"),
        ("weight=qdrop", {}, "a detector cannot be trained with weight=qdrop: rounding is learned afterwards"),
        ("norms=matched", {}, "in training norms use batch statistics"),
    ):
        with pytest.raises(UserError, match=message):
            QuantizedTraining.from_config(
                config(C4, **{f"{NODE}SCHEME": scheme}, **{f"{NODE}{key}": value for key, value in keys.items()})
            )
    QuantizedTraining.from_config(config(C4, **{f"{NODE}SCHEME": "act=stretched", f"{NODE}FIXED_BITS": "4w4a"}))
