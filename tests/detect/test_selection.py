"""``--scheme auto``: the search among schemes."""

from dataclasses import replace

import pytest
from support.detect.configs import C4, config
from support.detect.sweeps import MANY_DETECTIONS
from support.refusals import refused

from ssql_det.core.errors import UserError
from ssql_det.detect import selection
from ssql_det.detect.detector import load_trained_detector
from ssql_det.detect.evaluation_data import select_role_images
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.detect.selection import Trial, parse_auto, search_schemes
from ssql_det.quant import Bits, Calibration, Scheme

CHOICES = {"act": ("minmax", "mse"), "weight": ("minmax", "centred"), "norms": ("trained", "matched")}


def test_each_part_is_chosen_with_the_best_of_the_former_ones():
    costs = {"minmax": 3.0, "mse": 1.0, "centred": 2.0, "trained": 5.0, "matched": 7.0}
    tried = []

    def measure(scheme):
        tried.append(scheme)
        return Trial(scheme, (costs[scheme.act] * costs[scheme.weight], costs[scheme.norms]))

    trials = list(search_schemes(Scheme("centred", "minmax", "matched"), CHOICES, measure))
    assert [str(each) for each in tried] == [
        "weight=centred, norms=matched",
        "weight=centred, act=mse, norms=matched",
        "act=mse, norms=matched",
        "weight=centred, act=mse",
    ]
    assert min(trials, key=lambda trial: trial.score).scheme == Scheme("centred", "mse")
    assert trials[-1].score == pytest.approx((2.0 * 5.0) ** 0.5)


def test_auto_keeps_what_it_does_not_choose():
    assert parse_auto("auto") == Scheme()
    assert parse_auto(" auto , placement=integer, tune=50") == Scheme(placement="integer", tune=50)
    assert parse_auto("weight=centred") is None
    with pytest.raises(UserError, match="--scheme auto chooses weight itself; leave it out"):
        parse_auto("auto, weight=centred")


@pytest.mark.slow
def test_the_scheme_closest_to_the_float_detector_is_taken_then_tuned(learned, monkeypatch):
    monkeypatch.setattr(selection, "_CHOICES", {"act": ("minmax", "mse"), "norms": ("trained", "matched")})
    cfg = config(C4, MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    model, _ = load_trained_detector(cfg)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = Scheme(placement="integer", tune=3)
    settings = QuantizationSettings("all", Calibration(4, selection_images=4), start)
    images = select_role_images(cfg, settings.calibration)
    scheme, trials = selection.select_scheme(model, images, [Bits(4, 4), Bits(2, 4)], settings)
    assert len(trials) == 3
    assert all(trial.scheme.placement == "integer" and len(trial.losses) == 2 for trial in trials)
    assert all(0 < trial.losses[0] < trial.losses[1] for trial in trials)  # fewer bits, farther away
    best = min(trials, key=lambda trial: trial.score).scheme
    assert scheme == replace(best, act=best.act.replace("mse", "lsq"), tune=3)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_auto_is_refused_for_a_backbone(capsys, tmp_path):
    arguments = ["quantize", "--scheme", "auto", "--out", str(tmp_path / "q.safetensors")]
    backbone = [*arguments, "--checkpoint", "backbone.pth", "--data", "crops"]
    assert "--scheme auto compares detectors; name the scheme of a backbone" in refused(capsys, *backbone)
