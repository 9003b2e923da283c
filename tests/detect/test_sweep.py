"""A sweep: one copy of weights, one calibration, and a row for each bit-width that depends on nothing else."""

import dataclasses
import hashlib
import importlib.metadata
import json

import pytest
import torch
from safetensors.torch import load_file
from support.detect.configs import C4, config
from support.detect.sweeps import MANY_DETECTIONS, SETTINGS, TEST, run_sweep, sweep_arguments
from support.detect.training_runs import rows_by_bits
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.d2 import engine_name
from ssql_det.detect import detector_points, quantized_evaluation
from ssql_det.detect.detector import load_trained_detector
from ssql_det.detect.evaluation import evaluate
from ssql_det.detect.evaluation_data import build_evaluation_loader
from ssql_det.detect.sweep import sweep
from ssql_det.quant import Bits, Calibration, Quantization, Scheme, parse_bit_widths

# ---- rows ----------------------------------------------------------------------------------------------------------


def test_a_row_records_what_it_depends_on(whole_sweep, learned):
    folder, found = whole_sweep
    assert [row.bits for row in found] == ["FP", "8w8a", "4w4a"]
    assert rows.read_rows(folder / "results.jsonl") == found
    for row in found:
        assert (row.method, row.checkpoint, row.config, row.dataset) == ("", "model_final.pth", C4, TEST)
        assert row.checkpoint_hash == hashlib.sha256(learned.read_bytes()).hexdigest()
        assert (row.scope, row.seed, row.engine) == ("all", 3, engine_name())
        assert row.calibration == Calibration(4, 0, "toy_voc_2007_trainval")
        assert (row.scheme, row.placement, row.network) == ("minmax", "published", "narrow_resnet")
        assert (row.overrides, row.protocol) == ({}, {})
        assert set(row.metrics) == {"bbox/AP", "bbox/AP50", "bbox/AP75", "MB", "GFLOPs", "GBOPs"}
        assert row.seconds > 0
        assert row.versions["torch"] == importlib.metadata.version("torch")
    assert all(row.metrics["bbox/AP50"] > 0 for row in found)
    assert len({row.metrics["bbox/AP"] for row in found}) == 3


def test_a_row_has_the_seed_that_its_weights_were_trained_with(learned, tmp_path):
    for seed, expected in ((-1, 3), (7, 7)):
        (row,) = run_sweep(learned, tmp_path / str(seed), "FP", SEED=seed)
        assert row.seed == expected


def test_costs_depend_on_the_bit_width(whole_sweep, learned):
    fp, eight, four = (row.metrics for row in whole_sweep[1])
    model, _ = load_trained_detector(config(C4, MODEL__WEIGHTS=learned))
    assert fp["MB"] == pytest.approx(sum(each.numel() for each in model.parameters()) * 4 / 1e6)
    assert fp["GBOPs"] == pytest.approx(fp["GFLOPs"] * 32 * 32)
    assert fp["GFLOPs"] == eight["GFLOPs"] == four["GFLOPs"]
    assert fp["MB"] > 3 * eight["MB"] > 3 * four["MB"]
    assert fp["GBOPs"] > 10 * eight["GBOPs"] > 10 * four["GBOPs"]


def test_the_float_row_equals_evaluating_the_detector(whole_sweep, learned):
    cfg = config(C4, MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    model, _ = load_trained_detector(cfg)
    metrics = evaluate(model, build_evaluation_loader(cfg, TEST), TEST)
    assert metrics.items() <= whole_sweep[1][0].metrics.items()


def test_a_quantized_row_equals_evaluating_the_quantized_detector(whole_sweep, learned):
    cfg = config(C4, MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    model, _ = load_trained_detector(cfg)
    points = detector_points(model, "all")
    saved = whole_sweep[0] / "quantization.safetensors"
    assert set(load_file(saved)) == {f"{point.key}/ends" for point in points if not point.is_weight}
    quantization = Quantization.load(saved, model)
    assert set(quantization.points) == set(points)
    assert quantization.calibration == Calibration(4, 0, "toy_voc_2007_trainval")
    with quantization.at(Bits(4, 4)):
        metrics = evaluate(model, build_evaluation_loader(cfg, TEST), TEST)
    assert metrics.items() <= whole_sweep[1][2].metrics.items()


def test_a_sweep_leaves_the_weights_unchanged(whole_sweep, learned, tmp_path):
    cfg = config(C4, tmp_path / "one", MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    model, checkpoint = load_trained_detector(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(sweep(cfg, C4, model, checkpoint, parse_bit_widths("4,8"), SETTINGS))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    again = config(C4, tmp_path / "two", MODEL__WEIGHTS=learned, **MANY_DETECTIONS)
    (after,) = sweep(again, C4, model, checkpoint, parse_bit_widths("FP"), SETTINGS)
    assert after.metrics == whole_sweep[1][0].metrics


def test_the_order_of_bit_widths_does_not_matter(whole_sweep, learned, tmp_path):
    found = run_sweep(learned, tmp_path, "4,FP,8")
    assert [row.bits for row in found] == ["4w4a", "FP", "8w8a"]
    assert rows_by_bits(found) == rows_by_bits(whole_sweep[1])


def test_bit_widths_added_later_give_the_same_rows(whole_sweep, learned, tmp_path):
    run_sweep(learned, tmp_path, "8")
    assert rows_by_bits(run_sweep(learned, tmp_path)) == rows_by_bits(whole_sweep[1])
    assert [row.bits for row in rows.read_rows(tmp_path / "results.jsonl")] == ["8w8a", "FP", "4w4a"]


def test_a_finished_sweep_evaluates_nothing(whole_sweep, learned, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("measured again")

    folder, found = whole_sweep
    before = (folder / "results.jsonl").read_bytes()
    monkeypatch.setattr("ssql_det.detect.sweep.evaluate_quantized", never)
    monkeypatch.setattr("ssql_det.detect.sweep.prepare_evaluation", never)
    assert run_sweep(learned, folder) == found
    assert run_sweep(learned, folder, "4") == found[2:]
    assert (folder / "results.jsonl").read_bytes() == before


def test_a_sweep_calibrates_once(learned, monkeypatch, tmp_path):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return calibrate_detector(*args, **kwargs)

    calibrate_detector = quantized_evaluation.calibrate_detector
    monkeypatch.setattr(quantized_evaluation, "calibrate_detector", counted)
    run_sweep(learned, tmp_path, "8,4")
    run_sweep(learned, tmp_path, "8,4,6")
    assert len(calls) == 1


def test_the_command_prints_the_rows_it_writes(whole_sweep, learned, capsys, tmp_path):
    main(sweep_arguments(learned, tmp_path))
    said = capsys.readouterr().out
    found = rows.read_rows(tmp_path / "results.jsonl")
    theirs = {bits: dataclasses.replace(row, config="") for bits, row in rows_by_bits(whole_sweep[1]).items()}
    assert {bits: dataclasses.replace(row, config="") for bits, row in rows_by_bits(found).items()} == theirs
    assert all(row.config.startswith(C4) for row in found)
    for row in found:
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [row.bits]]
        assert line.split()[2] == f"{row.metrics['bbox/AP50']:.2f}"
    assert f"model_final.pth on {TEST}, scope all, minmax, 4 images of" in " ".join(said.split())


# ---- bits of single modules ----------------------------------------------------------------------------------------


def test_bits_in_a_file_take_precedence(whole_sweep, learned, tmp_path):
    path = tmp_path / "bits.json"
    path.write_text(json.dumps({"*": "8w8a"}))
    main(sweep_arguments(learned, tmp_path / "all", "--bits-file", str(path), bits="4"))
    (row,) = rows.read_rows(tmp_path / "all/results.jsonl")
    assert row.bits == "4w4a"
    assert row.metrics == whole_sweep[1][1].metrics  # those of 8 bits
    assert row.overrides == {"*": "8w8a"}
    path.write_text(json.dumps({"backbone.*": "8w8a"}))
    main(sweep_arguments(learned, tmp_path / "some", "--bits-file", str(path), bits="4"))
    (row,) = rows.read_rows(tmp_path / "some/results.jsonl")
    eight, four = whole_sweep[1][1].metrics, whole_sweep[1][2].metrics
    assert four["MB"] < row.metrics["MB"] < eight["MB"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold bits by pattern"),
        ('{"*": 8}', "must hold bits by pattern"),
        ('{"*": "99w8a"}', "99"),
        ('{"backbon.*": "8w8a"}', "no quantization point matches the override 'backbon.*'"),
        (None, "cannot read"),
    ],
)
def test_an_invalid_bits_file_is_refused(content, complaint, learned, capsys, tmp_path):
    path = tmp_path / "bits.json"
    if content is not None:
        path.write_text(content)
    assert complaint in refused(capsys, *sweep_arguments(learned, tmp_path / "out", "--bits-file", str(path), bits="4"))
    assert not (tmp_path / "out/results.jsonl").exists()


def test_bits_that_the_scheme_does_not_support_are_refused(learned, capsys, tmp_path):
    path = tmp_path / "bits.json"
    path.write_text(json.dumps({"backbone.*": "12w12a"}))
    for flags in (("--bits-file", str(path)), ("--bits", "FP,12")):
        line = refused(capsys, *sweep_arguments(learned, tmp_path / "out", "--scheme", "act=mse", *flags))
        assert line == "error: act=mse supports 2 to 10 bits, not 12"
    settings = dataclasses.replace(SETTINGS, scheme=Scheme.parse("act=mse"))
    with pytest.raises(UserError, match="act=mse supports 2 to 10 bits, not 11"):
        run_sweep(learned, tmp_path / "out", "FP,4w11a", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", ["1", "17", "4x4", "", "FP,,4"])
def test_invalid_bit_widths_are_refused(bits, learned, capsys, tmp_path):
    refused(capsys, *sweep_arguments(learned, tmp_path / "out", bits=bits))
    assert not (tmp_path / "out").exists()


def test_bit_widths_have_several_spellings_and_duplicates_are_dropped():
    assert [str(bits) for bits in parse_bit_widths("FP, 8,2w4a,8w8a")] == ["FP", "8w8a", "2w4a"]


def test_an_unknown_scope_and_two_test_sets_are_refused(learned, capsys, tmp_path):
    assert "--scope must be backbone or backbone+neck or all, got 'head'" in refused(
        capsys, *sweep_arguments(learned, tmp_path / "out", "--scope", "head")
    )
    with pytest.raises(UserError, match=r"a sweep evaluates on one data set; DATASETS\.TEST must have one name, got 2"):
        run_sweep(learned, tmp_path / "out", DATASETS__TEST=(TEST, "toy_voc_2007_trainval"))
    assert not (tmp_path / "out").exists()
