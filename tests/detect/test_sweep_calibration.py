"""A sweep's calibration: images chosen by a seed, and re-estimated norm statistics."""

import pytest
import torch
from support.detect.configs import C4, config
from support.detect.sweeps import MANY_DETECTIONS, run_sweep, sweep_arguments
from support.detect.training_runs import rows_by_bits
from support.refusals import refused

from ssql_det.core.errors import UserError
from ssql_det.detect.detector import load_trained_detector
from ssql_det.detect.evaluation_data import merge_batches, select_calibration_images
from ssql_det.detect.points import detector_points
from ssql_det.detect.quantized_evaluation import QuantizationSettings, calibrate_detector, run_detector
from ssql_det.detect.sweep import sweep
from ssql_det.quant import Bits, Calibration, Quantization, Scheme, parse_bit_widths

RE_ESTIMATED = Scheme(norms="re-estimated")
FLOAT_WEIGHTS = Bits(None, 8)

# ---- images --------------------------------------------------------------------------------------------------------


def test_calibration_images_depend_on_the_seed_alone():
    cfg = config(C4)
    chosen = [batch[0]["file_name"] for batch in select_calibration_images(cfg, Calibration(6))]
    torch.rand(1)
    assert [batch[0]["file_name"] for batch in select_calibration_images(cfg, Calibration(6))] == chosen
    assert [batch[0]["file_name"] for batch in select_calibration_images(cfg, Calibration(4))] == chosen[:4]
    assert [batch[0]["file_name"] for batch in select_calibration_images(cfg, Calibration(6, seed=1))] != chosen
    assert len(set(chosen)) == 6
    image = select_calibration_images(cfg, Calibration(1))[0][0]
    assert min(image["image"].shape[1:]) == 64  # in test form
    assert "instances" not in image


def test_a_row_records_the_number_of_images_that_exist(learned, tmp_path):
    (row,) = run_sweep(learned, tmp_path, "4", QuantizationSettings("all", Calibration(1000)))
    assert row.calibration == Calibration(30, 0, "toy_voc_2007_trainval")


def test_calibration_on_no_images_is_refused(learned, capsys, tmp_path):
    assert "--calib-images" in refused(capsys, *sweep_arguments(learned, tmp_path / "out", calib_images="0"))
    with pytest.raises(UserError, match="calibration needs at least 1 image, got --calib-images 0"):
        run_sweep(learned, tmp_path / "out", settings=QuantizationSettings("all", Calibration(0)))
    assert not (tmp_path / "out/results.jsonl").exists()


# ---- re-estimated norms ---------------------------------------------------------------------------------------------


def test_re_estimated_norms_change_the_rows_and_are_restored(whole_sweep, learned, tmp_path):
    cfg = config(C4, tmp_path, MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    model, checkpoint = load_trained_detector(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = QuantizationSettings("all", Calibration(4), RE_ESTIMATED)
    found = list(sweep(cfg, C4, model, checkpoint, parse_bit_widths("FP,8,4"), settings))
    for row, plain in zip(found, whole_sweep[1], strict=True):
        assert (row.metrics["bbox/AP"] == plain.metrics["bbox/AP"]) == (row.bits == "FP")  # FP is never changed
        assert (row.scheme, plain.scheme) == ("norms=re-estimated", "minmax")
        assert row.calibration == plain.calibration
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    backwards = run_sweep(learned, tmp_path / "backwards", "4,8,FP", settings)  # nothing of a width is left to the next
    assert rows_by_bits(backwards) == rows_by_bits(found)


def test_re_estimated_norms_have_the_statistics_of_the_images(learned):
    cfg = config(C4, MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    model, _ = load_trained_detector(cfg)
    images = select_calibration_images(cfg, Calibration(11))
    weight, norm = model.backbone.stem.conv1.weight, model.backbone.stem.conv1.norm
    means, variances = [], []
    with torch.no_grad():
        for first in (0, 8):  # eight at a time
            x = model.preprocess_image([image for (image,) in images[first : first + 8]]).tensor
            x = torch.nn.functional.conv2d(x, weight, stride=2, padding=3)
            means.append(x.mean((0, 2, 3)))
            variances.append(x.var((0, 2, 3)))
    quantization = Quantization(model, detector_points(model, "all"), RE_ESTIMATED)
    calibrate_detector(quantization, images)
    model.train()
    quantization.correct_norms(FLOAT_WEIGHTS, merge_batches(images), forward=run_detector)
    assert all(module.training for module in model.modules())
    with quantization.at(FLOAT_WEIGHTS):
        torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)


def run_into_an_accident(quantization, images):
    norm = quantization.model.backbone.stem.conv1.norm
    trained = norm.running_mean
    quantization.correct_norms(FLOAT_WEIGHTS, merge_batches(images), forward=run_detector)
    with quantization.at(FLOAT_WEIGHTS):
        assert not torch.equal(norm.running_mean, trained)
        raise ZeroDivisionError


def test_norms_are_restored_after_an_exception(learned):
    model, _ = load_trained_detector(config(C4, MODEL__WEIGHTS=learned))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibration_images = select_calibration_images(config(C4), Calibration(2))
    accidents = {ZeroDivisionError: calibration_images, TypeError: [[None]]}
    for accident, images in accidents.items():  # inside, and on the way in
        quantization = Quantization(model, detector_points(model, "all"), RE_ESTIMATED)
        calibrate_detector(quantization, calibration_images)
        with pytest.raises(accident):
            run_into_an_accident(quantization, images)
        assert bool(quantization.list_missing_repairs(FLOAT_WEIGHTS)) == (accident is TypeError)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        assert model.backbone.stem.conv1.norm.momentum == 0.1


def test_frozen_norms_cannot_be_re_estimated(learned, capsys, tmp_path):
    frozen = {"MODEL__RESNETS__NORM": "FrozenBN", "SSQL_DET__EXTRA_NORM": "FrozenBN"}
    line = refused(capsys, *sweep_arguments(learned, tmp_path / "out", "--scheme", "norms=re-estimated", **frozen))
    assert "this network has no BatchNorm that is not frozen" in line
    assert not (tmp_path / "out/results.jsonl").exists()
