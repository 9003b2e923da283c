"""Benches: what is measured with, the rows and the table, and the runtimes' processes."""

import argparse
import json
import logging
import statistics
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.deploy.bench_rows import make_bench_rows
from support.deploy.onnx_files import make_outputs, write_colour_detector, write_constant_detector
from support.detect.configs import C4, config
from support.toy_datasets import toy_names_at

from ssql_det.cli.bench import image_size
from ssql_det.core.errors import UserError
from ssql_det.deploy import bench
from ssql_det.deploy.bench import BenchCase, list_cases, measure_cases, read_bench_rows
from ssql_det.deploy.bench_files import NOISE, load_bench_images


@pytest.fixture
def rows(tmp_path):
    return make_bench_rows(tmp_path)


# ---- the command line


@pytest.mark.parametrize(("text", "size"), [("480x640", (480, 640)), ("1x10000", (1, 10_000))])
def test_a_size_is_height_and_width(text, size):
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["480", "480x", "x640", "0x640", "480x10001", "480X640", "-1x5", "4.5x6", "9x9x9", ""])
def test_another_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a height and a width of 1 to 10000 pixels"):
        image_size(text)


# ---- rows


def test_a_row_has_medians_and_the_file(rows):
    torch, exported = rows
    assert (torch.seconds, torch.least_seconds, torch.most_seconds) == (0.4, 0.3, 0.5)
    assert (torch.file_size, torch.integer_share) == (None, None)
    assert (exported.seconds, exported.file_size, exported.integer_share) == (0.125, 1500, 0.9876)


def test_a_line_is_flat_and_lines_are_appended(rows, tmp_path):
    path = tmp_path / "new/bench.jsonl"
    for row in rows:
        bench.append_bench_row(path, row)
    assert read_bench_rows(path) == rows
    bench.check_bench_file(path)
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["runtime"] == "torch"
    assert {name: second[name] for name in ("bits", "detections", "peak_memory", "size", "cpu", "cpu_flags")} == {
        "bits": "4w8a",
        "detections": 20,
        "peak_memory": 90_000_000,
        "size": [480, 640],
        "cpu": "EPYC",
        "cpu_flags": ["avx2", "avx512_vnni"],
    }
    assert not [name for name, value in second.items() if isinstance(value, dict) and name != "versions"]


def test_only_a_file_of_a_bench_is_appended_to(rows, tmp_path):
    path = tmp_path / "bench.jsonl"
    bench.check_bench_file(path)
    path.touch()
    bench.check_bench_file(path)
    bench.append_bench_row(path, rows[0])
    with path.open("a") as file:
        file.write('{"runtime": "torch", "sec')
    bench.check_bench_file(path)  # a kill has cut a line short
    path.write_text('{"schema": 2, "metrics": {}}\n')
    with pytest.raises(UserError, match="has other lines than rows of a bench"):
        bench.check_bench_file(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is a directory"):
        bench.check_bench_file(path)


def test_the_table_compares_with_torch(rows):
    assert bench.format_rows(rows) == [
        ["torch, FP", "400.0", "1.00", "2,000", "-", "-", "21"],
        ["onnxruntime, 4w8a", "125.0", "3.20", "90", "0.00", "98.8%", "20"],
    ]


@pytest.mark.parametrize("has_openvino", [True, False])
def test_each_runtime_runs_each_file(has_openvino, tmp_path):
    files = {"FP": (tmp_path / "a", None), "8w8a": (tmp_path / "b", 0.97)}
    exported = [("onnxruntime", None), ("onnxruntime", 0.97)] + [("openvino", None)] * 2 * has_openvino
    cases = list_cases(tmp_path / "c", files, has_openvino)
    assert [(case.runtime, case.integer_share) for case in cases[2:]] == exported
    assert [case.name for case in cases[:2]] == ["torch, FP", "torch-fast, FP"]
    assert [case.bits for case in cases] == ["FP"] * 2 + ["FP", "8w8a"] * (1 + has_openvino)


# ---- images


def test_without_test_data_it_is_noise_by_the_rule_and_a_warning_says_so(caplog):
    cfg = config(C4, DATASETS__TEST=(), INPUT__MIN_SIZE_TEST=48, INPUT__MAX_SIZE_TEST=60)
    with caplog.at_level(logging.WARNING, "ssql_det"):
        images = load_bench_images(cfg)
    assert images.name == NOISE
    assert images.timed.shape == (45, 60, 3)  # of 480 x 640
    assert images.timed.std() > 70
    assert "DATASETS.TEST is empty; name a data set: noise, seed 0 is timed instead" in caplog.text
    assert load_bench_images(cfg, (30, 20)).timed.shape == (30, 20, 3)


def test_an_image_of_ones_own_is_resized(tmp_path):
    Image.new("RGB", (80, 40), (255, 0, 0)).save(tmp_path / "red.png")
    cfg = config(C4, INPUT__MIN_SIZE_TEST=20, INPUT__MAX_SIZE_TEST=100)
    for size, expected in ((None, (20, 40)), ((33, 55), (33, 55))):
        images = load_bench_images(cfg, size, tmp_path / "red.png")
        assert (images.name, len(images.batches), images.timed.shape) == ("red.png", 1, (*expected, 3))
        np.testing.assert_array_equal(images.timed[0, 0], [255, 0, 0])


def test_test_images_are_taken_where_there_are_some(toy):
    with toy_names_at(toy):
        images = load_bench_images(config(C4), (50, 60))
    assert len(images.batches) == 8
    assert images.name.endswith(".jpg")
    assert {tuple(batch[0]["image"].shape) for batch in images.batches} == {(3, 50, 60)}


# ---- processes


@pytest.mark.slow
def test_processes_detect_in_turn_and_tell_what_they_found(tmp_path):
    files = [write_constant_detector(tmp_path / f"{count}.onnx", make_outputs(count, mask_side=28)) for count in (3, 5)]
    cases = [BenchCase("onnxruntime", "FP", file) for file in files]
    start = time.perf_counter()
    measured = measure_cases(cases, np.zeros((64, 64, 3), np.uint8), threads=1, rounds=2, pause=0.01)
    assert [each.detections for each in measured] == [3, 5]
    for each in measured:
        assert len(each.seconds) == 2
        assert 0 < sum(each.seconds) < time.perf_counter() - start
        assert each.median == statistics.median(each.seconds)
        assert 10e6 < each.peak_memory < 300e6  # no torch


@pytest.mark.slow
def test_a_mistake_in_a_process_is_one_here(tmp_path):
    good, bad = write_colour_detector(tmp_path / "good.onnx"), tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    cases = [BenchCase("onnxruntime", "FP", file) for file in (good, bad)]
    with pytest.raises(UserError, match=r"bad\.onnx is not an ONNX file that onnxruntime"):
        measure_cases(cases, np.zeros((64, 64, 3), np.uint8), threads=1, rounds=1)


@pytest.mark.parametrize(("code", "kind"), [(-9, UserError), (1, RuntimeError), (-11, RuntimeError)])
def test_a_process_that_was_killed_may_have_had_too_little_memory(code, kind, tmp_path):
    process = object.__new__(bench._BenchProcess)
    process.case = BenchCase("openvino", "8w8a", tmp_path)
    process.process = SimpleNamespace(returncode=code, args=["python"])
    with pytest.raises(kind, match="openvino, 8w8a: the process was killed" if kind is UserError else "exit code"):
        process.report_end()
