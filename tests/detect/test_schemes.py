"""A scheme other than the published one: in a sweep's rows, its quantization file and predictions."""

import json

import cv2
import numpy as np
import pytest
from support.detect.configs import C4, CONFIGS, config, tiny_overrides
from support.detect.sweeps import MANY_DETECTIONS, run_sweep, sweep_arguments
from support.detect.training_runs import rows_by_bits
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.detect import detector_points
from ssql_det.detect.detector import load_trained_detector
from ssql_det.detect.evaluation_data import select_calibration_images
from ssql_det.detect.predict import detect_at_bit_widths
from ssql_det.detect.quantized_evaluation import QuantizationSettings, calibrate_detector
from ssql_det.images.results import Detection
from ssql_det.quant import Calibration, Quantization, Scheme, parse_bit_widths

SCHEME = "weight=centred, act=mse, norms=re-estimated"
PLAN = QuantizationSettings("all", Calibration(4), Scheme.parse(SCHEME))


@pytest.fixture(scope="module")
def in_scheme(toy_data_in_place, learned, tmp_path_factory):
    """The folder of a sweep with this scheme, made by the command."""
    folder = tmp_path_factory.mktemp("in_scheme")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)
        main(sweep_arguments(learned, folder, "--scheme", SCHEME))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (90, 60)), ("b.png", (50, 80))):
        cv2.imwrite(str(folder / name), cv2.resize(generator.integers(0, 255, (8, 8, 3), np.uint8), size))
    return folder


def predict(weights, out, photos, *flags, bits="FP,8,4"):
    given = ["--bits", bits, "--score", "0", "--calib-images", "4", "--out", str(out), *map(str, flags)]
    return [
        "predict",
        "--config-file",
        str(CONFIGS / C4),
        *given,
        *tiny_overrides(MODEL__WEIGHTS=weights, **MANY_DETECTIONS),
        str(photos),
    ]


def written(out):
    """The detections in the files of a prediction, by bits and image. A category's id is the class's index."""
    found = {}
    for path in out.glob("detections_*.json"):
        by_image = found.setdefault(path.stem.removeprefix("detections_"), ([], []))
        for each in json.loads(path.read_text())["annotations"]:
            detection = Detection(each["category_id"], tuple(each["bbox"]), each["score"])
            by_image[each["image_id"] - 1].append(detection)
    return found


def test_rows_record_the_scheme_and_differ_from_those_of_another(in_scheme, whole_sweep):
    found = rows.read_rows(in_scheme / "results.jsonl")
    assert [row.bits for row in found] == ["FP", "8w8a", "4w4a"]
    for row, plain in zip(found, whole_sweep[1], strict=True):
        assert (row.scheme, row.placement) == (SCHEME, "published")
        assert row.calibration == plain.calibration == Calibration(4, 0, "toy_voc_2007_trainval")
        assert (row.metrics["bbox/AP"] == plain.metrics["bbox/AP"]) == (row.bits == "FP")  # FP is never changed
        assert (row.metrics["MB"] > plain.metrics["MB"]) == (row.bits != "FP")  # its own norm statistics


def test_each_part_of_a_scheme_changes_the_results(in_scheme, learned, tmp_path):
    found = {SCHEME: rows.read_rows(in_scheme / "results.jsonl")[-1].metrics["bbox/AP"]}
    for text in ("minmax", "weight=centred", "act=mse", "norms=re-estimated", "weight=centred, act=mse"):
        settings = QuantizationSettings("all", Calibration(4), Scheme.parse(text))
        (row,) = run_sweep(learned, tmp_path / text, "4", settings)
        found[text] = row.metrics["bbox/AP"]
    assert len(set(found.values())) == len(found) == 6


def test_bit_widths_added_later_give_the_same_rows(in_scheme, learned, tmp_path):
    run_sweep(learned, tmp_path, "4", PLAN)
    found = run_sweep(learned, tmp_path, "FP,8,4", PLAN)
    expected = rows.read_rows(in_scheme / "results.jsonl")
    assert [row.metrics for row in found] == [row.metrics for row in expected]
    name = "quantization.safetensors"
    assert (tmp_path / name).read_bytes() == (in_scheme / name).read_bytes()


def test_predictions_equal_those_of_the_quantization_in_process(in_scheme, learned, photos, tmp_path):
    saved = in_scheme / "quantization.safetensors"
    main(predict(learned, tmp_path / "saved", photos, "--quantization", saved, bits="FP,4"))
    main(predict(learned, tmp_path / "anew", photos, "--scheme", SCHEME, bits="FP,4"))
    cfg = config(C4, MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    model, _ = load_trained_detector(cfg)
    quantization = Quantization(model, detector_points(model, "all"), Scheme.parse(SCHEME))
    batches = select_calibration_images(cfg, Calibration(4))
    calibrate_detector(quantization, batches)
    paths = [photos / "a.png", photos / "b.png"]
    found = detect_at_bit_widths(cfg, quantization, paths, parse_bit_widths("FP,4"), 0.0, batches)
    expected = {str(bits): tuple(detections) for bits, detections in found.items()}
    assert list(expected) == ["FP", "4w4a"]
    assert all(detections for of_width in expected.values() for detections in of_width)
    assert expected["FP"] != expected["4w4a"]
    assert written(tmp_path / "saved") == written(tmp_path / "anew") == expected


def test_a_bit_width_that_was_not_swept_has_no_norm_statistics(in_scheme, learned, photos, capsys, tmp_path):
    given = predict(learned, tmp_path, photos, "--quantization", in_scheme / "quantization.safetensors", bits="6")
    message = "no images to compute the statistics of this bit-width from; of a saved quantization use the bit-widths"
    assert f"error: norms=re-estimated: {message}" in refused(capsys, *given)
    assert not list(tmp_path.iterdir())


def test_a_quantization_file_of_another_scheme_is_refused(in_scheme, learned, photos, capsys, tmp_path):
    saved = in_scheme / "quantization.safetensors"
    line = refused(capsys, *predict(learned, tmp_path, photos, "--quantization", saved, "--scheme", "act=mse"))
    assert line == f"error: {saved} has scheme {SCHEME}, not act=mse; calibrate again with this scheme"
    line = refused(capsys, *predict(learned, tmp_path, photos, "--quantization", saved, "--scope", "backbone"))
    assert f"{saved} has other points: " in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["minmax", "act=mse, norms=re-estimated", "weight=centred, act=mse:2.4"])
def test_another_scheme_in_the_same_folder_is_refused(text, in_scheme, learned):
    before = {path.name: path.read_bytes() for path in in_scheme.iterdir()}
    with pytest.raises(UserError) as refusal:
        run_sweep(learned, in_scheme, "FP,5", QuantizationSettings("all", Calibration(4), Scheme.parse(text)))
    difference = f"--scheme {SCHEME!r} (now {text!r})"
    assert str(refusal.value) == f"the sweep in {in_scheme} has {difference}; choose another OUTPUT_DIR"
    assert {path.name: path.read_bytes() for path in in_scheme.iterdir()} == before


def test_two_spellings_of_a_scheme_are_one_sweep(in_scheme, learned):
    same = Scheme.parse("norms = re-estimated,act=mse:2,weight=centred,placement=published")
    found = run_sweep(learned, in_scheme, settings=QuantizationSettings("all", Calibration(4), same))
    assert found == rows.read_rows(in_scheme / "results.jsonl")
    assert len(rows_by_bits(found)) == 3
