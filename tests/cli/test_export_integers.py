"""``ssql-det export --bits``: what it prints and writes, with and without a quantization file, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from support.cli.lines import export, export_backbone, quantize, quantize_backbone
from support.deploy.cpu import NEEDS_VNNI

from ssql_det.deploy import Detector
from ssql_det.deploy import export as exporter

pytestmark = pytest.mark.slow
FILE, REPORT, QUANTIZATION = "out/detector.onnx", "out/detector.check.json", "out/q.safetensors"
OF_FILE = "--quantization {out}/q.safetensors --check-images 1"


@pytest.fixture(autouse=True)
def calm(logging_as_it_was):
    """In every test of this file."""


def read_report(place):
    return json.loads((place.here / REPORT).read_text())


def refused(result):
    code, said = result
    assert code == 2
    return said.err.splitlines()[-1]


def test_a_detector_in_integers_and_its_comparison(run, place):
    code, said = run(export(flags="--bits 4w8a --calib-images 2 --check-images 3 --evaluate"))
    report = read_report(place)
    assert code == 0
    assert report["agrees"] is True
    assert (report["in integers"], report["float layers"]) == (1, {})
    assert report["all tensors"]["equal"] >= 0.99 * report["all tensors"]["elements"]
    assert report["all tensors"]["further apart"] == 0
    assert report["tensors"]["backbone.stem:output"]["elements"] > 0
    assert {*report["results"]} == {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"}
    ap = report["metrics"]["toy_voc_2007_test/bbox/AP"]
    assert ap["file"] == pytest.approx(ap["engine"], abs=0.3)
    cells = [line.split() for line in said.out.splitlines()]
    assert ["in", "integers", "1"] in cells
    assert ["further", "apart", "0"] in cells
    assert said.out.splitlines()[-1] == f"wrote {place.out}/detector.onnx"
    metadata = Detector(place.here / FILE).metadata
    assert (metadata.bits, metadata.scheme, metadata.scope) == ("4w8a", "placement=integer", "all")


@NEEDS_VNNI
def test_a_file_that_is_not_the_simulation_is_an_error(run, place, monkeypatch):
    compute_integer_form = exporter.compute_integer_form

    def compute_otherwise(*given):
        form = compute_integer_form(*given)
        (point,) = (each for each in form.activations if each.key == "backbone.res2.0.conv2:input")
        grid = replace(form.activations[point], scale=form.activations[point].scale * 1.02)
        return replace(form, activations={**form.activations, point: grid})

    monkeypatch.setattr(exporter, "compute_integer_form", compute_otherwise)
    sentence = refused(run(export(flags="--bits 8 --calib-images 2 --check-images 1")))
    assert "detector.onnx does not agree with the engine, see " in sentence
    report = read_report(place)
    assert report["agrees"] is False
    wrong = [name for name, each in report["tensors"].items() if each["equal"] < 0.9 * each["elements"]]
    assert wrong == [*report["tensors"]][: len(wrong)]  # the worst come first
    assert {*wrong} == {"backbone.res2.0.conv2:input", "backbone.res2.0.conv2:output"}


def test_without_a_comparison_a_file_in_integers_is_written(run, place):
    (place.here / REPORT).write_text('{"agrees": true}')  # of an earlier run
    code, said = run(export("DATASETS.TEST ()", "--bits 8 --calib-images 2 --check-images 0"))
    assert (code, read_report(place)) == (0, {"file": "detector.onnx"})
    assert said.out.splitlines()[0] == "not compared: --check-images is 0"
    assert Detector(place.here / FILE).metadata.bits == "8w8a"


def test_a_quantization_file_with_its_repairs(run, place):
    scheme = "--scheme 'weight=brecq:3, act=mse, norms=matched, placement=integer' --reconstruction-images 4"
    assert run(quantize(flags=scheme))[0] == 0
    code, said = run(export("DATASETS.TRAIN ()", f"--bits 8 {OF_FILE}"))  # norms are in the file
    assert code == 0, said.err
    assert read_report(place)["agrees"] is True
    assert "weight=brecq:3" in Detector(place.here / FILE).metadata.scheme
    line = refused(run(export(flags=f"--bits 4 {OF_FILE}")))
    assert "needs rounding, which was not learned at 4w4a (learned at: 8w8a); use another bit-width" in line
    line = refused(run(export(flags=f"--bits 8 --scheme placement=integer {OF_FILE}")))
    assert "q.safetensors has scheme weight=brecq:3" in line


def test_norms_that_a_quantization_file_lacks_are_computed_on_its_images(run, place):
    assert run(quantize(flags="--scheme 'norms=matched, placement=integer'"))[0] == 0
    code, said = run(export(flags=f"--bits 5w4a {OF_FILE}"))
    assert code == 0, said.err
    assert read_report(place)["agrees"] is True
    line = refused(run(export("DATASETS.TRAIN ()", f"--bits 6 {OF_FILE}")))
    assert "the data sets in DATASETS.TRAIN cannot be read" in line


def test_a_quantization_file_of_other_weights_is_refused(run, place):
    assert run(quantize(flags="--scheme placement=integer"))[0] == 0
    checkpoint = torch.load(place.good / "c4.pth", weights_only=False)
    checkpoint["model"]["backbone.stem.conv1.weight"][0] += 0.01
    torch.save(checkpoint, place.here / "other.pth")
    line = refused(run(export("MODEL.WEIGHTS {here}/other.pth", f"--bits 8 {OF_FILE}")))
    assert "q.safetensors was calibrated on other weights" in line
    assert (place.here / FILE).read_text() == "of an earlier run\n"


def test_a_bits_file_is_for_a_file_too_and_float_layers_are_printed(run, place):
    (place.here / "bits.json").write_text('{"backbone.res3.*": "2w3a"}')
    flags = "--bits 4 --bits-file {here}/bits.json --scope backbone --calib-images 2 --check-images 1"
    code, said = run(export(flags=flags))
    assert code == 0, said.err
    rpn = "proposal_generator.rpn_head.conv"
    assert [line.split()[1:] for line in said.out.splitlines() if rpn in line] == [
        [rpn, f"{read_report(place)['float layers'][rpn]:,}"]
    ]
    assert Detector(place.here / FILE).metadata.bits.startswith("4w4a")
    for text, sentence in (
        ('{"backbone.res3.*": "9w8a"}', "backbone.res3.*: 9w8a has no integer form"),
        ('{"backbone.res3.*": "FP"}', "backbone.res3.*: FP has no integer form"),
        ('{"backbone.magic": "4w4a"}', "no quantization point matches the override 'backbone.magic'"),
    ):
        (place.here / "bits.json").write_text(text)
        assert sentence in refused(run(export(flags="--bits 4 --bits-file {here}/bits.json --calib-images 2")))


def test_a_backbone_whose_quantization_file_lacks_norms_is_refused(run, place):
    code, said = run(quantize_backbone("--bits 8 --scheme 'norms=matched, placement=integer'"))
    assert code == 0, said.err
    code, said = run(export_backbone(f"--bits 8 {OF_FILE}"))
    assert code == 0, said.err
    assert read_report(place)["agrees"] is True
    line = refused(run(export_backbone(f"--bits 4 {OF_FILE}")))
    assert line.endswith("q.safetensors has no norms at 4w4a; run `ssql-det quantize` for these bits")
    (place.here / QUANTIZATION).unlink()
    assert run(quantize_backbone("--bits 8"))[0] == 0
    line = refused(run(export_backbone(f"--bits 8 {OF_FILE}")))
    assert "q.safetensors has placement=published, but integers need placement=integer" in line
