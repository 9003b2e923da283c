"""A bug in a model or in a plug-in keeps its exception; only mistakes in data and configs become user errors."""

import pytest
import torch
from support.detect.configs import C4, config
from support.detect.sweeps import TEST

from ssql_det.core.errors import UserError
from ssql_det.d2 import BACKBONE_REGISTRY
from ssql_det.detect.detector import build_detector, load_trained_detector
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import build_evaluation_loader
from ssql_det.detect.measurements import AP, DISTILLATION, measuring
from ssql_det.detect.modeling import C4ROIHeads
from ssql_det.detect.points import detector_points
from ssql_det.detect.predict import detect_at_bit_widths
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.detect.sweep import sweep
from ssql_det.detect.train import estimate_norms, train
from ssql_det.quant import Bits, Calibration, Quantization

SETTINGS = QuantizationSettings("all", Calibration(1))


def run_evaluation(cfg, toy):
    evaluate(build_detector(cfg), build_evaluation_loader(cfg, TEST), TEST)


def run_sweep(cfg, toy):
    list(sweep(cfg, C4, *load_trained_detector(cfg), [Bits.FP], SETTINGS))


def run_sensitivity_of_ap(cfg, toy):
    measure(cfg, AP)


def run_sensitivity_of_outputs(cfg, toy):
    measure(cfg, DISTILLATION)


def measure(cfg, quantity):
    settings = QuantizationSettings("all", Calibration(1, selection_images=1))
    with measuring(cfg, build_detector(cfg), "", settings) as measurer:
        measurer.measure(quantity, Bits(4, 4))


def run_norm_estimation(cfg, toy):
    estimate_norms(cfg, build_detector(cfg), seed=0)


def run_training(cfg, toy):
    train(cfg, C4)


def run_prediction(cfg, toy):
    model = build_detector(cfg)
    image = toy / "VOC2007/JPEGImages/000001.jpg"
    detect_at_bit_widths(cfg, Quantization(model, detector_points(model, "all")), [image], [Bits.FP], 0.5)


RUNS = (
    *(run_evaluation, run_sweep, run_sensitivity_of_ap, run_sensitivity_of_outputs),
    *(run_norm_estimation, run_training, run_prediction),
)


@pytest.mark.parametrize("error", [KeyError, TypeError, AssertionError, ValueError])
@pytest.mark.parametrize("run", RUNS)
def test_a_bug_in_a_forward_pass_keeps_its_exception(run, error, learned, toy, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise error("planted")

    monkeypatch.setattr(C4ROIHeads, "forward", fail)
    weights = "" if run is run_training else learned
    with pytest.raises(error, match="planted") as raised:
        run(config(C4, tmp_path / "run", MODEL__WEIGHTS=weights), toy)
    assert raised.value.__cause__ is None


@pytest.fixture
def broken_backbone():
    """Registers a backbone that raises the error that is put into the list."""
    errors = []

    @BACKBONE_REGISTRY.register()
    def build_broken_backbone(cfg, input_shape):
        raise errors[0]

    yield errors
    del BACKBONE_REGISTRY._obj_map["build_broken_backbone"]


@pytest.mark.parametrize("error", [KeyError("planted"), TypeError("planted"), AttributeError("planted")])
def test_a_bug_in_a_plugin_keeps_its_exception(error, broken_backbone):
    broken_backbone.append(error)
    with pytest.raises(type(error), match="planted"):
        build_detector(config(C4, MODEL__BACKBONE__NAME="build_broken_backbone"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL__BACKBONE__NAME": "build_magic"}, "build_magic"),
        ({"MODEL__ROI_HEADS__NAME": "Magic"}, "Magic"),
        ({"MODEL__RESNETS__NORM": "XBN"}, r"unknown 'XBN' \(the value of MODEL\.RESNETS\.NORM"),
        (
            {"MODEL__BACKBONE__NAME": "build_resnet_backbone", "MODEL__RESNETS__DEPTH": 19},
            r"unknown 19 \(the value of MODEL\.RESNETS\.DEPTH\)",
        ),
        ({"MODEL__RPN__IN_FEATURES": ["res9"]}, r"unknown 'res9' \(the value of MODEL\.RPN\.IN_FEATURES\)"),
    ],
)
def test_a_name_that_the_engine_does_not_know_is_a_user_error_with_its_cause(keys, message):
    with pytest.raises(UserError, match=f"this config does not describe a detector: .*{message}") as raised:
        build_detector(config(C4, **keys))
    assert isinstance(raised.value.__cause__, KeyError)


def test_an_assertion_without_a_message_is_shown():
    with pytest.raises(UserError, match=r"does not describe a detector: AssertionError at `assert len\(labels\) == "):
        build_detector(config(C4, MODEL__RPN__IOU_LABELS=[0]))


def test_an_image_that_cannot_be_read_is_a_user_error_with_its_cause(learned, monkeypatch, tmp_path):
    def fail(self, record):
        raise OSError("damaged")

    monkeypatch.setattr("ssql_det.d2.DatasetMapper.__call__", fail)
    cfg = config(C4, tmp_path, MODEL__WEIGHTS=learned)
    with pytest.raises(UserError, match="a test image cannot be read: damaged") as raised:
        evaluate(torch.nn.Identity(), build_evaluation_loader(cfg, TEST), TEST)
    assert isinstance(raised.value.__cause__, OSError)
    with pytest.raises(UserError, match=r"cannot train on \S+\.jpg: damaged") as raised:
        train(config(C4, tmp_path / "run"), C4)
    assert "OSError: damaged" in str(raised.value.__cause__)
