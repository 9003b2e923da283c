"""Sweeps that evaluate the exported detector in onnxruntime."""

import json

import pytest
from support.detect.sweeps import sweep_arguments
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.core.rows import read_rows
from ssql_det.deploy.detector import Detector
from ssql_det.report.display_names import format_scheme
from ssql_det.report.row_groups import keep_newest


@pytest.fixture(scope="module")
def exported_sweep(learned, tmp_path_factory):
    """The folder of a sweep of the exported detector at full precision."""
    folder = tmp_path_factory.mktemp("exported-sweep")
    main(sweep_arguments(learned, folder, "--engine", "onnxruntime", bits="FP"))
    return folder


def test_the_exported_detector_has_the_ap_of_the_engines(exported_sweep, whole_sweep):
    (row,) = read_rows(exported_sweep / "results.jsonl")
    simulated = whole_sweep[1][0]
    assert row.engine == "onnxruntime"
    assert "onnxruntime" in row.versions
    assert simulated.metrics["bbox/AP50"] > 0
    for name in ("bbox/AP", "bbox/AP50", "bbox/AP75"):
        assert row.metrics[name] == pytest.approx(simulated.metrics[name], abs=0.05)
    assert row.metrics["MB"] == simulated.metrics["MB"]


def test_the_row_is_another_measurement_than_the_engines(exported_sweep, whole_sweep):
    (row,) = read_rows(exported_sweep / "results.jsonl")
    assert format_scheme(row) == "minmax, in onnxruntime"
    assert len(keep_newest([row, whole_sweep[1][0]])) == 2


def test_the_exported_file_is_kept_and_says_what_it_is(exported_sweep, learned):
    metadata = Detector(exported_sweep / "detector_FP.onnx").metadata
    assert metadata.bits == "FP"
    assert metadata.weights["file"] == learned.name


def test_the_same_folder_refuses_the_other_engine(exported_sweep, learned, capsys):
    line = refused(capsys, *sweep_arguments(learned, exported_sweep, bits="FP"))
    assert "engine" in line
    assert json.loads((exported_sweep / "sweep.json").read_text())["engine"] == "onnxruntime"


def test_bit_widths_that_cannot_be_exported_are_refused_before_anything_is_written(learned, tmp_path, capsys):
    line = refused(capsys, *sweep_arguments(learned, tmp_path / "out", "--engine", "onnxruntime", bits="FP,8"))
    assert line == "error: only full precision can be exported, not 8w8a; use --bits FP, or leave --engine out"
    assert not (tmp_path / "out").exists()
