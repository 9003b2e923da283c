"""``ssql-det export``: what it prints and writes, and an export that does not agree."""

import json
import sys

import pytest
import torch
from support.cli.lines import arguments, export, export_backbone, read_next_command

from ssql_det.cli.main import main
from ssql_det.core.files import sha256
from ssql_det.deploy import Detector
from ssql_det.deploy import export as exporter

pytestmark = pytest.mark.slow
FILE, REPORT = "out/detector.onnx", "out/detector.check.json"


@pytest.fixture(autouse=True)
def calm(logging_as_it_was):
    """In every test of this file."""


@pytest.fixture
def run(run, place):
    """Runs a line: its exit code, what it prints, and the report."""
    return lambda line: (*run(line), json.loads((place.here / REPORT).read_text()))


def test_a_detector_and_its_comparison_on_test_images(run, place):
    code, said, report = run(export(flags="--check-images 3 --evaluate"))
    assert code == 0
    assert (report["file"], report["agrees"], report["images"]) == ("detector.onnx", True, 3)
    assert report["detections"] > 20
    ap = report["metrics"]["toy_voc_2007_test/bbox/AP"]
    assert ap["file"] == pytest.approx(ap["engine"], abs=0.05)
    assert read_next_command(said.err)[0] == "run"
    assert ["unmatched", "0"] in [line.split() for line in said.out.splitlines()]
    assert said.out.splitlines()[-1] == f"wrote {place.out}/detector.onnx"
    detector = Detector(place.here / FILE)
    assert detector.metadata.weights == {"file": "c4.pth", "sha256": sha256(place.good / "c4.pth")}
    assert detector.metadata.config == "c4.yaml"
    assert detector.class_names[:2] == ("zero", "one")


def test_an_export_that_does_not_agree_is_an_error_and_can_be_looked_at(run, place, monkeypatch):
    def perturb(model, folded=True):
        copy = make_traceable(model, folded)
        with torch.no_grad():
            copy.roi_heads.box_predictor.cls_score.bias[0] += 0.01
        return copy

    make_traceable = exporter.make_traceable
    monkeypatch.setattr(exporter, "make_traceable", perturb)
    code, said, report = run(export())
    assert code == 2
    assert said.err.splitlines() == [
        f"error: {place.out}/detector.onnx does not agree with the engine, see {place.out}/detector.check.json; do not "
        "use it, and report this"
    ]
    assert "wrote" not in said.out
    assert report["agrees"] is False
    assert report["score_difference"] > 1e-4
    assert Detector(place.here / FILE).class_names[0] == "zero"


def test_images_of_a_folder_without_detections(run, place):
    line = export("MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.99", "--check-images 2 --check-folder {toy}/VOC2007/JPEGImages")
    code, said, report = run(line)
    assert (code, report["agrees"], report["detections"], report["resized_differently"]) == (0, True, 0, 0)
    assert "nothing was detected in these images, so little was compared: name a --check-folder with" in said.out


def test_a_backbone(run, place):
    code, said, report = run(export_backbone("--check-images 3 --size 48"))
    assert (code, report["agrees"], report["images"]) == (0, True, 3)
    assert report["feature_difference"] < 1e-5
    assert said.out.splitlines()[-1] == f"wrote {place.out}/detector.onnx"


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named(name, place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(export(), place))
    assert stopped.value.code == 2
    *_, sentence = capsys.readouterr().err.splitlines()
    assert sentence == f"error: exporting needs {name}: pip install 'ssql_det[deploy]'"
    assert (place.here / FILE).read_text() == "of an earlier run\n"
