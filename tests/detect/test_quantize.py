"""``ssql-det quantize``: one file with repairs, which resumes to the same bytes, and which other commands use."""

import json
import random
from dataclasses import replace

import pytest
import torch
from support.detect.configs import C4, CONFIGS, config, random_images, randomize_norms, tiny_overrides
from support.detect.sweeps import MANY_DETECTIONS, run_sweep, sweep_arguments
from support.detect.training_runs import StoppedError, rows_by_bits
from support.refusals import refused
from support.toy_datasets import toy_names_at

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.files import sha256
from ssql_det.detect import detector_points
from ssql_det.detect.detector import build_detector, load_trained_detector
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import build_evaluation_loader, merge_batches
from ssql_det.detect.quantize import quantize_detector
from ssql_det.detect.quantized_evaluation import (
    NormBatches,
    QuantizationSettings,
    calibrate_detector,
    evaluate_detector_at,
)
from ssql_det.detect.replay import record_proposals, run_with_recorded_proposals
from ssql_det.quant import Bits, Calibration, Quantization, Scheme

SCHEME = "weight=brecq:20, act=lsq, norms=matched, tune=4"
CALIBRATION = Calibration(4, 0, "toy_voc_2007_trainval", reconstruction_images=4)
SETTINGS = QuantizationSettings("all", CALIBRATION, Scheme.parse(SCHEME))
FOUR = Bits(4, 4)


def quantize_arguments(weights, out, *flags, bits="4", scheme=SCHEME, **keys):
    images = ["--calib-images", "4", "--reconstruction-images", "4"]
    given = ["quantize", "--config-file", str(CONFIGS / C4), "--bits", bits, "--scheme", scheme, *images, *flags]
    return [*given, "--out", str(out), *tiny_overrides(MODEL__WEIGHTS=weights, **MANY_DETECTIONS, **keys)]


@pytest.fixture(scope="module")
def file(toy, learned, tmp_path_factory):
    """Made by the command."""
    path, before = tmp_path_factory.mktemp("quantized") / "q.safetensors", learned.read_bytes()
    with toy_names_at(toy), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)
        main(quantize_arguments(learned, path))
    assert learned.read_bytes() == before
    return path


@pytest.fixture(scope="module")
def swept(file, learned, tmp_path_factory):
    """The folder of a sweep with the file."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssql_det.core.console.set_up_logging", lambda *ignored: None)
        main(sweep_with(file, learned, folder))
    return folder


def sweep_with(file, weights, out, *flags, bits="FP,4"):
    line = sweep_arguments(weights, out, "--quantization", str(file), *flags, bits=bits)
    index = line.index("--calib-images")
    return line[:index] + line[index + 2 :]


def load(weights):
    cfg = config(C4, MODEL__WEIGHTS=weights, **MANY_DETECTIONS)
    return cfg, load_trained_detector(cfg)[0]


# ---- a file --------------------------------------------------------------------------------------------------------


def test_the_file_holds_every_repair_of_the_scheme(file, learned):
    _, model = load(learned)
    quantization = Quantization.load(file, model)
    assert str(quantization.scheme) == SCHEME
    assert quantization.calibration == CALIBRATION
    assert {label: repair.made for label, repair in quantization.repairs.items()} == {
        "4w4a": ("rounding", "norms", "tune")
    }
    weights = {point for point in quantization.points if point.is_weight}
    learned_points = quantization.repairs["4w4a"].quantizers
    assert weights <= {*learned_points}
    assert all(learned_points[point].is_learned for point in weights)


def test_interrupted_runs_end_with_the_same_bytes(file, learned, monkeypatch, tmp_path):
    """Each run is stopped behind a random number of saves, until one is not stopped."""
    save, path, moments = Quantization.save, tmp_path / "q.safetensors", random.Random(5)
    num_stopped = 0
    for most in (1, 3, 5, None):
        left = None if most is None else moments.randint(1, most)

        def save_or_stop(self, path):
            nonlocal left
            save(self, path)
            left = None if left is None else left - 1
            if left == 0:
                raise StoppedError

        monkeypatch.setattr(Quantization, "save", save_or_stop)
        cfg, model = load(learned)
        try:
            quantize_detector(cfg, model, [FOUR], SETTINGS, path)
        except StoppedError:
            num_stopped += 1
            assert path.read_bytes() != file.read_bytes()
    assert num_stopped == 3
    assert path.read_bytes() == file.read_bytes()


def test_started_again_it_adds_bit_widths_and_writes_nothing_else(file, learned, capsys, tmp_path):
    path = tmp_path / "q.safetensors"
    line = {"scheme": "norms=matched", "bits": "8"}
    main(quantize_arguments(learned, path, **line))
    before, modified = path.read_bytes(), path.stat().st_mtime_ns
    capsys.readouterr()
    main(quantize_arguments(learned, path, **line))
    assert "nothing to do" in capsys.readouterr().out
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, modified)
    main(quantize_arguments(learned, path, **line | {"bits": "8,4"}))
    main(quantize_arguments(learned, tmp_path / "both.safetensors", **line | {"bits": "8,4"}))
    assert path.read_bytes() == (tmp_path / "both.safetensors").read_bytes() != before


def test_a_scheme_without_repairs_only_calibrates(whole_sweep, learned, tmp_path):
    path = tmp_path / "q.safetensors"
    main(quantize_arguments(learned, path, "--reconstruction-images", "0", scheme="minmax"))
    assert path.read_bytes() == (whole_sweep[0] / "quantization.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"scheme": "weight=brecq:20, act=lsq"}, f"has the scheme {SCHEME}, not weight=brecq:20, act=lsq; choose"),
        ({"flags": ("--scope", "backbone")}, "has other points: "),
        ({"flags": ("--calib-seed", "1")}, f"was calibrated on {CALIBRATION}, not on 4 images of "),
        ({"flags": ("--reconstruction-images", "8")}, f"was calibrated on {CALIBRATION}, not on 4 images of "),
        ({"flags": ("--reconstruction-images", "0")}, "weight=brecq:20 needs images for reconstruction; give --recon"),
        ({"flags": ("--reconstruction-images", "27")}, "DATASETS.TRAIN has 30 images, but calibration needs 4, "),
        ({"bits": "FP,4"}, "--bits has FP, which needs no quantization"),
    ],
)
def test_a_file_of_other_settings_is_left_as_it_is(changed, reason, file, learned, capsys):
    before, others = file.read_bytes(), {key: value for key, value in changed.items() if key != "flags"}
    assert reason in refused(capsys, *quantize_arguments(learned, file, *changed.get("flags", ()), **others))
    assert file.read_bytes() == before


@pytest.fixture
def other_weights(tmp_path):
    torch.manual_seed(9)
    torch.save({"model": build_detector(config(C4)).state_dict()}, tmp_path / "other.pth")
    return tmp_path / "other.pth"


def test_a_file_of_other_weights_is_refused_by_all_commands(file, other_weights, capsys, tmp_path):
    before = file.read_bytes()
    sensitivity = ["sensitivity", "--config-file", str(CONFIGS / C4), "--quantization", str(file)]
    lines = (
        quantize_arguments(other_weights, file),
        sweep_with(file, other_weights, tmp_path / "out"),
        [*sensitivity, "--out", str(tmp_path / "bits.json"), *tiny_overrides(MODEL__WEIGHTS=other_weights)],
    )
    for line in lines:
        assert f"{file} was calibrated on other weights of this model" in refused(capsys, *line)
    assert file.read_bytes() == before
    assert not (tmp_path / "out/results.jsonl").exists()


# ---- used ----------------------------------------------------------------------------------------------------------


def test_a_sweep_uses_the_file(swept, file, whole_sweep, learned):
    fp, four = rows.read_rows(swept / "results.jsonl")
    assert fp.metrics == whole_sweep[1][0].metrics
    assert four.metrics["bbox/AP"] != whole_sweep[1][2].metrics["bbox/AP"]
    for row in (fp, four):
        assert (row.scheme, row.calibration, row.scope) == (SCHEME, CALIBRATION, "all")
    assert (swept / "quantization.safetensors").read_bytes() == file.read_bytes()
    assert json.loads((swept / "sweep.json").read_text())["--quantization"] == sha256(file)
    cfg, model = load(learned)
    quantization = Quantization.load(file, model)
    with quantization.at(FOUR):
        metrics = evaluate(model, build_evaluation_loader(cfg, cfg.DATASETS.TEST[0]), cfg.DATASETS.TEST[0])
    assert metrics.items() <= four.metrics.items()


def test_a_resumed_sweep_needs_the_same_file(swept, file, learned, capsys, tmp_path):
    found = rows.read_rows(swept / "results.jsonl")
    _, model = load(learned)
    other = tmp_path / "other.safetensors"
    quantization = Quantization.load(file, model)
    quantization.repairs["8w8a"] = quantization.repairs["4w4a"]
    quantization.save(other)
    assert "has --quantization '" in refused(capsys, *sweep_with(other, learned, swept))
    assert "--quantization" in refused(capsys, *sweep_arguments(learned, swept, bits="FP", calib_images="4"))
    copy = swept / "quantization.safetensors"
    line = refused(capsys, *sweep_with(copy, learned, swept))
    assert line == f"error: {copy} is also an input, which would be overwritten; name another output file"
    assert rows_by_bits(run_sweep(learned, swept, "FP,4", SETTINGS, quantization_file=file)) == rows_by_bits(found)
    assert copy.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("flags", "bits", "reason"),
    [
        ((), "FP,4,3", "needs rounding, which was not learned at 3w3a (learned at: 4w4a)"),
        (("--scope", "backbone"), "FP", "has other points: "),
        (("--scheme", "minmax"), "FP", f"has scheme {SCHEME}, not minmax"),
        (("--calib-images", "5"), "FP", "--calib-images is 5, but"),
    ],
)
def test_a_sweep_refuses_what_the_file_is_not_for(flags, bits, reason, file, learned, capsys, tmp_path):
    assert reason in refused(capsys, *sweep_with(file, learned, tmp_path / "out", *flags, bits=bits))
    assert not (tmp_path / "out").exists()


def test_learned_repairs_need_a_file(learned, capsys, tmp_path):
    line = refused(capsys, *sweep_arguments(learned, tmp_path / "out", "--scheme", SCHEME))
    assert "needs rounding, which is learned for each bit-width: run `ssql-det quantize`" in line
    with pytest.raises(UserError, match="run `ssql-det quantize`"):
        run_sweep(learned, tmp_path / "out", "4", SETTINGS)
    given = ["--fast", "--bits", "4", "--out", str(tmp_path / "bits.json")]
    line = ["sensitivity", "--config-file", str(CONFIGS / C4), *given, *tiny_overrides(MODEL__WEIGHTS=learned)]
    assert "run `ssql-det quantize`" in refused(capsys, *line[:3], "--scheme", SCHEME, *line[3:])
    assert not (tmp_path / "out").exists()


def test_a_sensitivity_analysis_uses_a_calibration_but_nothing_learned(file, learned, capsys, tmp_path):
    plain, out = tmp_path / "plain.safetensors", tmp_path / "bits.json"
    flags = ("--reconstruction-images", "0")  # those for selection come after them
    main(quantize_arguments(learned, plain, *flags, scheme="act=mse, norms=matched", bits="8"))

    def analyze(*flags):
        line = ["sensitivity", "--config-file", str(CONFIGS / C4), "--fast", "--selection-images", "5", *flags]
        keys = tiny_overrides(OUTPUT_DIR=tmp_path / flags[0], MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
        return [*line, "--out", str(out), *keys]

    capsys.readouterr()
    tables = []
    for flags in (
        ["--quantization", str(plain)],
        ["--scheme", "act=mse, norms=matched", "--calib-images", "4"],
    ):
        main(analyze(*flags))
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "which learned for all parts together" in refused(capsys, *analyze("--quantization", str(file)))


# ---- norms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["matched", "re-estimated"])
def test_norms_are_computed_with_the_float_detectors_regions(norms):
    torch.manual_seed(2)
    model = randomize_norms(build_detector(config(C4)))
    images = [[image] for image in random_images(3)]
    two = Bits(2, 2)
    ours, expected = (Quantization(model, detector_points(model, "all"), Scheme(norms=norms)) for _ in range(2))
    for quantization in (ours, expected):
        calibrate_detector(quantization, images)
    recorded = record_proposals(model, merge_batches(images))  # in float
    expected.correct_norms(two, recorded, forward=run_with_recorded_proposals)
    evaluate_detector_at(ours, two, lambda: None, None, NormBatches(model, images))
    tensors = expected.repairs["2w2a"].tensors
    assert ours.repairs["2w2a"].tensors.keys() == tensors.keys()
    assert all(torch.equal(tensor, ours.repairs["2w2a"].tensors[name]) for name, tensor in tensors.items())


def test_norms_that_a_file_lacks_are_computed_on_its_images(learned, tmp_path):
    scheme = Scheme.parse("norms=matched")
    settings = QuantizationSettings("all", Calibration(4, 0, "toy_voc_2007_trainval"), scheme)
    path = tmp_path / "q.safetensors"
    main(quantize_arguments(learned, path, "--reconstruction-images", "0", scheme=str(scheme), bits="8"))
    (expected,) = run_sweep(learned, tmp_path / "plain", "4", settings)
    (row,) = run_sweep(learned, tmp_path / "file", "4", settings, quantization_file=path)
    assert replace(row, seconds=0, time="") == replace(expected, seconds=0, time="")
    other = {"DATASETS__TRAIN": ("toy_voc_2007_test",)}
    with pytest.raises(UserError, match=r"but DATASETS\.TRAIN gives 4 images of toy_voc_2007_test"):
        run_sweep(learned, tmp_path / "other", "4", settings, quantization_file=path, **other)
    run_sweep(learned, tmp_path / "other", "FP", settings, quantization_file=path, **other)  # needs no images
