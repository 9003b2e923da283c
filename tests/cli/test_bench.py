"""``ssql-det bench``: a narrow detector in each way of running it."""

import json

import pytest
from support.cli.lines import arguments, bench, read_next_command
from support.toy_datasets import toy_names_at

from ssql_det.cli.main import main
from ssql_det.core.files import sha256

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def calm(logging_as_it_was, monkeypatch):
    """In every test of this file. OpenVINO counts as not installed."""
    monkeypatch.setattr("ssql_det.deploy.openvino_detector.has_openvino", lambda: False)


@pytest.fixture
def run(place, capsys):
    """Runs a line; what it prints, and the rows."""

    def run(line):
        capsys.readouterr()
        with toy_names_at(place.toy):
            main(arguments(line, place))
        lines = (place.out / "bench.jsonl").read_text().splitlines()
        said = capsys.readouterr()
        assert f"wrote {place.out}/bench.jsonl" in said.out
        assert read_next_command(said.err)[0] == "export"
        return said.out, [json.loads(line) for line in lines]

    return run


def test_each_way_of_running_a_detector_is_measured_and_a_second_bench_adds_its_rows(run, place):
    said, rows = run(bench(flags="--bits 2w4a --size 70x90"))
    ways = [("torch", "FP"), ("torch-fast", "FP"), ("onnxruntime", "FP"), ("onnxruntime", "2w4a")]
    assert [(row["runtime"], row["bits"]) for row in rows] == ways
    torch, fast, floats, integers = rows
    assert torch["detections"] == fast["detections"] == floats["detections"] > 0
    assert integers["file_size"] < 0.5 * floats["file_size"]
    assert floats["peak_memory"] < 0.5 * torch["peak_memory"]
    assert integers["integer_share"] > 0.95
    for row in rows:
        assert row["size"] == [70, 90]
        assert (row["threads"], row["rounds"], row["scope"]) == (1, 1, "all")
        assert row["scheme"] == "placement=integer"
        assert row["checkpoint_hash"] == sha256(place.good / "c4.pth")
        assert row["seconds"] == row["least_seconds"] == row["most_seconds"] > 0
        assert {"torch", "onnxruntime"} <= row["versions"].keys()
    assert [f"  {runtime}, {bits}  " in said for runtime, bits in ways] == [True] * len(ways)
    assert "OpenVINO is not installed, so it was not measured: pip install 'ssql_det[openvino]'" in said

    _, both = run(bench(flags="--bits FP", keys="DATASETS.TEST ()"))
    assert both[:4] == rows
    assert [row["image"] for row in both] == [torch["image"]] * 4 + ["noise, seed 0"] * 3
    assert both[-1]["config"] == "c4.yaml DATASETS.TEST '()'"
    assert {row["scheme"] for row in both[4:]} == {""}
