"""Sweeps that evaluate the exported detector in onnxruntime."""

import json

import pytest
from support.detect.sweeps import run_sweep, sweep_arguments
from support.refusals import refused

from ssql_det.cli.main import main
from ssql_det.core.rows import read_rows
from ssql_det.deploy.detector import Detector
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.quant import Calibration, Scheme
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


# ---- in integers

INTEGERS = ("--engine", "onnxruntime", "--scheme", "placement=integer")
SETTINGS = QuantizationSettings("all", Calibration(4), Scheme(placement="integer"))
WIDTHS = "8,2w4a"


@pytest.fixture(scope="module")
def simulated_rows(learned, tmp_path_factory):
    return run_sweep(learned, tmp_path_factory.mktemp("simulated"), WIDTHS, SETTINGS)


@pytest.fixture(scope="module")
def integer_sweep(learned, tmp_path_factory):
    """The folder of a sweep in integers that was ended after 8 bits, and continued."""
    folder = tmp_path_factory.mktemp("integers")
    for bits in ("8", WIDTHS):
        main(sweep_arguments(learned, folder, *INTEGERS, bits=bits))
    return folder


def test_integers_have_the_ap_of_the_simulation(integer_sweep, simulated_rows):
    rows = read_rows(integer_sweep / "results.jsonl")
    assert [row.bits for row in rows] == [row.bits for row in simulated_rows] == ["8w8a", "2w4a"]
    for row, simulated in zip(rows, simulated_rows, strict=True):
        assert row.metrics["bbox/AP"] == pytest.approx(simulated.metrics["bbox/AP"], abs=0.3)
        for name in ("MB", "GFLOPs", "GBOPs"):
            assert row.metrics[name] == simulated.metrics[name]
    assert simulated_rows[0].metrics["bbox/AP50"] > 0
    assert len({row.metrics["bbox/AP"] for row in rows}) == 2


def test_rows_of_integers_say_how_they_were_measured(integer_sweep, simulated_rows):
    rows = read_rows(integer_sweep / "results.jsonl")
    assert {(row.engine, row.scheme, row.placement) for row in rows} == {
        ("onnxruntime", "placement=integer", "integer")
    }
    assert len(keep_newest([*rows, *simulated_rows])) == 2 * len(rows)


def test_a_file_of_each_bit_width_is_kept(integer_sweep, learned):
    for row in read_rows(integer_sweep / "results.jsonl"):
        metadata = Detector(integer_sweep / f"detector_{row.bits}.onnx").metadata
        assert (metadata.bits, metadata.weights["file"]) == (row.bits, learned.name)
        assert metadata.scheme == "placement=integer"


def test_a_continued_sweep_has_the_rows_of_one_that_was_not_interrupted(integer_sweep, learned, tmp_path):
    main(sweep_arguments(learned, tmp_path, *INTEGERS, bits="2w4a"))
    (again,) = read_rows(tmp_path / "results.jsonl")
    assert again.metrics == read_rows(integer_sweep / "results.jsonl")[1].metrics
    name = "detector_2w4a.onnx"
    assert (tmp_path / name).read_bytes() == (integer_sweep / name).read_bytes()


def test_a_finished_sweep_exports_nothing_again(integer_sweep, learned):
    before = {path: path.stat().st_mtime_ns for path in integer_sweep.iterdir() if path.suffix in (".onnx", ".jsonl")}
    main(sweep_arguments(learned, integer_sweep, *INTEGERS, bits=WIDTHS))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_folder_of_a_sweep_in_integers_refuses_the_simulation(integer_sweep, learned, capsys):
    line = refused(capsys, *sweep_arguments(learned, integer_sweep, "--scheme", "placement=integer", bits="8"))
    assert "engine" in line


def test_a_sweep_in_integers_with_a_quantization_file(integer_sweep, learned, tmp_path):
    """That of a sweep, at a bit-width that it did not measure."""
    line = sweep_arguments(learned, tmp_path, "--engine", "onnxruntime", bits="3w5a")
    index = line.index("--calib-images")
    file = integer_sweep / "quantization.safetensors"
    main([*line[:index], "--quantization", str(file), *line[index + 2 :]])
    (row,) = read_rows(tmp_path / "results.jsonl")
    assert (row.bits, row.scheme, row.calibration.images) == ("3w5a", "placement=integer", 4)


@pytest.mark.parametrize(
    ("flags", "bits", "said"),
    [
        ((), "FP,8", "integers need placement=integer; use --scheme 'placement=integer'"),
        (("--scheme", "placement=integer"), "FP,9", "9w9a has no integer form: weights and activations need 2 to 8"),
    ],
)
def test_bit_widths_without_integers_are_refused_before_anything_is_written(
    flags, bits, said, learned, tmp_path, capsys
):
    line = refused(capsys, *sweep_arguments(learned, tmp_path / "out", "--engine", "onnxruntime", *flags, bits=bits))
    assert said in line
    assert not (tmp_path / "out").exists()
