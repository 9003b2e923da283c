import dataclasses
import fcntl
import json
import logging
import math
import subprocess
import sys
import threading
import time

import pytest

from ssql_det.core.errors import UserError
from ssql_det.core.rows import SCHEMA, Calibration, Row, append_row, check_results_file, package_versions, read_rows

APPEND_MANY = """
import sys
from ssql_det.core.rows import Calibration
from ssql_det.core.rows import Row, append_row
path, name, count = sys.argv[1:]
settings = {"scheme": "minmax", "calibration": Calibration(64, 0, "voc")}
for seed in range(int(count)):
    padding = {"x": name * seed}  # rows of all lengths
    fields = ("a.pth", "9f", "a.yaml", "voc", "4w4a", "all", {"AP": 1.5}, seed, "e", 1.0)
    append_row(path, Row(name, *fields, versions=padding, **settings))
"""


def row(**changes):
    fields = {
        "method": "SSQL",
        "checkpoint": "runs/ä.pth",
        "checkpoint_hash": "9f3c",
        "config": "x.yaml",
        "dataset": "voc_2007_test",
        "bits": "4w4a",
        "scope": "backbone",
        "metrics": {"AP50": 61.2, "AP": 0.1 + 0.2},
        "seed": 0,
        "engine": "minid2",
        "seconds": 92.5,
        "scheme": "act=mse",
        "calibration": Calibration(128, 3, "voc_2007_trainval"),
        "network": "resnet18",
        "overrides": {"backbone.res5.*": "8w8a"},
    }
    return Row(**(fields | changes))


def to_line(**changes):
    """The JSON line of a row."""
    return json.dumps(dataclasses.asdict(row()) | changes)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "run" / "results.jsonl"


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The log lines of the package, even if another test has set up its loggers."""
    monkeypatch.setattr(logging.getLogger("ssql_det"), "propagate", True)
    return caplog


def test_rows_are_read_as_written_and_in_order(results):
    protocol = {"probes": ["knn", "linear"], "rate": 0.1, "epochs": 100, "recipe": "cifar"}
    rows = [row(), row(seed=1, metrics={}), row(bits="FP", overrides={}), row(config="", protocol=protocol)]
    for each in rows:
        append_row(results, each)
    assert read_rows(results) == rows


def test_the_roles_of_a_calibration_are_read_as_written_and_left_out_if_they_have_no_images(results):
    rows = [
        row(calibration=Calibration(64, 3, "voc", reconstruction_images=32, selection_images=16)),
        row(calibration=Calibration(64, 3, "voc", selection_images=16)),
        row(calibration=Calibration(64, 3, "voc")),
    ]
    for each in rows:
        append_row(results, each)
    assert read_rows(results) == rows
    assert [list(json.loads(line)["calibration"])[3:] for line in results.read_text().splitlines()] == [
        ["reconstruction_images", "selection_images"],
        ["selection_images"],
        [],  # as earlier versions wrote it
    ]


def test_the_text_of_a_calibration_names_the_roles_that_have_images():
    calibration = Calibration(64, 3, "voc")
    assert str(calibration) == "64 images of voc, seed 3"
    assert str(dataclasses.replace(calibration, selection_images=16)).endswith("seed 3, 16 more for selection")
    texts = {
        str(dataclasses.replace(calibration, reconstruction_images=one, selection_images=other))
        for one in (0, 1, 2)
        for other in (0, 1, 2)
    }
    assert len(texts) == 9  # reports compare calibrations by their texts


def test_a_row_has_its_time_and_package_versions():
    assert row().versions == package_versions()
    assert {"python", "torch", "numpy"} <= package_versions().keys()
    assert row().time.endswith("+00:00")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_metric_that_is_not_finite_is_null(results, value):
    append_row(results, row(metrics={"AP": value, "AP50": 1.5}))
    assert '"AP": null' in results.read_text()
    assert read_rows(results)[0].metrics == {"AP": None, "AP50": 1.5}


@pytest.mark.slow
def test_two_writers_lose_and_truncate_no_row(results):
    results.parent.mkdir()
    count = 1000
    command = [sys.executable, "-c", APPEND_MANY, results]
    writers = [subprocess.Popen([*command, name, str(count)]) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    rows = read_rows(results)
    assert len(rows) == 2 * count
    for name in ("one", "two"):
        assert [each.seed for each in rows if each.method == name] == list(range(count))


def test_a_writer_waits_while_another_writes_a_line(results):
    append_row(results, row())
    writer = threading.Thread(target=append_row, args=(results, row(seed=1)))
    with open(results, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"truncated": ')
        writer.start()
        time.sleep(0.1)
        file.write(b'"no"}\n')
    writer.join()
    assert json.loads(results.read_bytes().splitlines()[1]) == {"truncated": "no"}


@pytest.mark.parametrize("length", [1, 40, -1], ids=["first byte", "half", "all but the line break"])
def test_a_truncated_line_loses_only_that_row(results, warnings, length):
    append_row(results, row(seed=0))
    append_row(results, row(seed=1))
    first, second = results.read_bytes().splitlines()
    results.write_bytes(first + b"\n" + (second if length < 0 else second[:length]))
    append_row(results, row(seed=2))
    assert [each.seed for each in read_rows(results)] == ([0, 1, 2] if length < 0 else [0, 2])
    assert ["line 2 is truncated" in record.getMessage() for record in warnings.records] == (
        [] if length < 0 else [True]
    )


def test_a_line_may_be_truncated_within_a_character(results, warnings):
    append_row(results, row())
    with open(results, "ab") as file:
        file.write('{"method": "ä'.encode()[:-1])
    assert read_rows(results) == [row(time=read_rows(results)[0].time)]
    assert "is truncated" in warnings.text


NOT_ROWS = {
    "other JSON": ('{"a": 1}', "not a result row"),
    "a list": ("[1, 2]", "not a result row"),
    "a number": ("3", "not a result row"),
    "a newer schema": (f'{{"schema": {SCHEMA + 1}, "method": "SSQL"}}', "update ssql_det"),
    "a schema that is not a number": ('{"schema": "new"}', "not a result row"),
    "too few fields": (f'{{"schema": {SCHEMA}, "method": "SSQL"}}', "missing .*'seed'"),
    "bits that are a number": (to_line(bits=4), "with an invalid bits"),
    "metrics that are strings": (to_line(metrics={"AP": "x"}), "with an invalid metrics"),
    "a time that is not one": (to_line(time=5), "with an invalid time"),
    "nested too deeply": ("[" * 100_000, "not a result row"),
    "too many digits": (f'{{"schema": {"9" * 5000}}}', "not a result row"),
    "a schema of an earlier version than the first": (to_line(schema=0), "not a result row"),
    "a schema that is a truth value": (to_line(schema=True), "not a result row"),
    "a repeated key": (to_line()[:-1] + ', "bits": "FP"}', "not a result row: the key 'bits' is there twice"),
    "an unknown field": (to_line(colour="red"), "'colour'"),
}


@pytest.mark.parametrize(("line", "hint"), NOT_ROWS.values(), ids=NOT_ROWS)
def test_the_error_for_another_line_names_its_number(results, line, hint):
    append_row(results, row())
    with open(results, "a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(UserError, match=f"^{results}, line 3 .*{hint}"):
        read_rows(results)


WRONG_TYPES = {
    "calibration": (
        *("64 images of voc, seed 0", None, {}, {"images": 64, "seed": 0}, [64, 0, "voc"]),
        *({"images": "64", "seed": 0, "data": ""}, {"images": 64, "seed": False, "data": ""}),
        *({"images": 64, "seed": 0, "data": None}, {"images": 64, "seed": 0, "data": "", "more": 1}),
        *({"images": 64, "seed": 0, "data": "", name: 0.5} for name in ("reconstruction_images", "selection_images")),
        {"images": 64, "seed": 0, "selection_images": 1},
    ),
    "overrides": ("res5 at 8w8a", None, ["res5"], {"res5": 8}, {"res5": ["8w8a"]}),
    "protocol": ("linear", None, ["linear"], {"rate": None}, {"probes": [1]}, {"probes": {"knn": 1}}),
    "scheme": (None, 5, ["minmax"], {"act": "mse"}),
    "placement": (None, 5, ["published"]),
    "network": (None, 5, ["resnet18"]),
    "seed": (True, "0", 0.5, None),
    "seconds": (None, "1", True, -1, [1]),
    "versions": (None, "torch", ["torch"], {"torch": 2}),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_TYPES.items() for value in values])
def test_a_field_of_a_wrong_type_is_named(results, name, value):
    results.parent.mkdir()
    results.write_text(f"{to_line(**{name: value})}\n")
    with pytest.raises(UserError, match=f"^{results}, line 1 is a result row with an invalid {name}; was it "):
        read_rows(results)


def test_renamed_keys_in_a_config_are_translated(tmp_path):
    old = row(config="voc_r18_c4.yaml SSQL.EXTRA_NORM BN 'DATASETS.TEST' SSQL")
    append_row(tmp_path / "rows.jsonl", old)
    (loaded,) = read_rows(tmp_path / "rows.jsonl")
    assert loaded.config == "voc_r18_c4.yaml SSQL_DET.EXTRA_NORM BN 'DATASETS.TEST' SSQL"


# ---- schema 1 ------------------------------------------------------------------------------------------------------

DETECTOR = "64 images of toy_voc_2007_trainval, seed 3, MinMax"
PROBE = (
    "narrow_resnet; knn, linear; fast: SGD at 30 for a batch of 512, 100 epochs; digits at 96 px, 800 and 200 images"
)
PROTOCOL = {
    "probes": ["knn", "linear"],
    "linear": "fast",
    "optimizer": "SGD",
    "rate": 30.0,
    "batch": 512,
    "epochs": 100,
    "recipe": "digits",
    "size": 96,
    "train_images": 800,
    "val_images": 200,
}
REESTIMATED = {"scheme": "norms=re-estimated"}


def old_line(calibration, config="voc_r18_c4.yaml SOLVER.MAX_ITER 9", **changes):
    """A line as schema 1 wrote it."""
    fields = dataclasses.asdict(row())
    for name in ("scheme", "network", "protocol", "overrides", "placement"):
        del fields[name]
    return json.dumps(fields | {"calibration": calibration, "config": config, "schema": 1} | changes)


def read_old_row(results, *texts):
    results.parent.mkdir(exist_ok=True)
    results.write_text(f"{old_line(*texts)}\n")
    (loaded,) = read_rows(results)
    return loaded


@pytest.mark.parametrize(
    ("suffix", "expected_fields"),
    [
        ("", {}),
        (", BN recalibrated", REESTIMATED),
        (", backbone.res5.* at 8w8a", {"overrides": {"backbone.res5.*": "8w8a"}}),
        (
            ", BN recalibrated, backbone.res5.* at 8w8a, roi_heads.[a, b]* at FP",
            REESTIMATED | {"overrides": {"backbone.res5.*": "8w8a", "roi_heads.[a, b]*": "FP"}},
        ),
    ],
)
def test_a_detectors_row_of_schema_1_is_upgraded(results, suffix, expected_fields):
    loaded = read_old_row(results, DETECTOR + suffix)
    expected = row(
        config="voc_r18_c4.yaml SOLVER.MAX_ITER 9",
        time=loaded.time,
        calibration=Calibration(64, 3, "toy_voc_2007_trainval"),
        **{"scheme": "minmax", "network": "", "overrides": {}} | expected_fields,
    )
    assert loaded == expected
    assert list(loaded.overrides) == list(expected.overrides)  # the last pattern that matches counts
    assert (loaded.schema, loaded.placement) == (SCHEMA, "published")
    append_row(results, loaded)
    assert read_rows(results) == [loaded, loaded]


@pytest.mark.parametrize(
    ("config", "protocol"),
    [
        (PROBE, PROTOCOL),
        (
            "narrow_resnet; linear, knn; published: LARS at 0.8 for a batch of 64, 2 epochs, 3 views of each image; "
            "digits at 96 px, 800 and 200 images",
            PROTOCOL
            | {"probes": ["linear", "knn"], "linear": "published", "optimizer": "LARS", "rate": 0.8, "batch": 64}
            | {"epochs": 2, "cached_views": 3},
        ),
        (
            "narrow_resnet; knn; digits at 96 px, 800 and 200 images",
            {"probes": ["knn"]} | dict(list(PROTOCOL.items())[6:]),
        ),
    ],
)
def test_a_probes_row_of_schema_1_is_upgraded(results, config, protocol):
    loaded = read_old_row(results, "512 images of crops, seed 0, MinMax, BN recalibrated", config)
    expected = {"config": "", "network": "narrow_resnet", "protocol": protocol, "overrides": {}} | REESTIMATED
    assert loaded == row(time=loaded.time, calibration=Calibration(512, 0, "crops"), **expected)
    assert {name: type(value) for name, value in loaded.protocol.items()} == {
        name: type(value) for name, value in protocol.items()
    }


@pytest.mark.parametrize(
    "texts",
    [
        ("64 images of voc, seed 0, MSE",),
        ("MinMax",),
        ("64 images of voc, seed 0, MinMax, BN frozen",),
        ("64 images of voc, seed 0, MinMax, backbone.res5.*",),
        (f"64 images, MinMax{', a at b' * 60}!",),  # an ambiguous pattern would backtrack exponentially
        (f"64 images of {', seed 0, MinMax' * 2000}!",),
        (64,),
        (None,),
        (DETECTOR, None),
        (DETECTOR, PROBE.replace("100 epochs", "some epochs")),
        (DETECTOR, "narrow_resnet; finetune; digits at 96 px, 800 and 200 images"),
    ],
)
def test_the_error_for_an_unknown_text_of_schema_1_names_the_line(results, texts):
    append_row(results, row())
    with open(results, "a") as file:
        file.write(f"{old_line(DETECTOR)}\n{old_line(*texts)}\n")
    where = f"{results}, line 3 has schema 1 and cannot be converted: its "
    with pytest.raises(UserError, match=rf"^{where}(calibration|config) [^\n]+$"):
        read_rows(results)


def test_the_types_of_the_other_fields_of_schema_1_are_checked(results):
    results.parent.mkdir()
    results.write_text(f"{old_line(DETECTOR, seed='0')}\n")
    with pytest.raises(UserError, match="line 1 is a result row with an invalid seed"):
        read_rows(results)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_new_file_and_a_results_file_are_accepted_and_another_is_refused(results, tmp_path, warnings):
    check_results_file(results)
    append_row(results, row())
    check_results_file(results)
    (tmp_path / "empty.jsonl").touch()
    check_results_file(tmp_path / "empty.jsonl")
    (tmp_path / "notes.txt").write_text("my notes\nand more\nof them\n")
    with pytest.raises(UserError, match=r"notes\.txt is not a results file; name another file"):
        check_results_file(tmp_path / "notes.txt")
    assert ["line 1 and 2 more are truncated" in record.getMessage() for record in warnings.records] == [True]
    with pytest.raises(UserError, match="it is a directory"):
        check_results_file(tmp_path)


def test_a_text_may_have_a_mark_at_its_start_other_line_ends_and_separators_of_unicode(results):
    """As editors leave them."""
    results.parent.mkdir()
    lines = [to_line(method=name).replace("x.yaml", "x\u2028.yaml") for name in ("a", "b")]
    results.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [(each.method, each.config) for each in read_rows(results)] == [("a", "x\u2028.yaml"), ("b", "x\u2028.yaml")]


def test_a_missing_file_is_one_sentence(results):
    with pytest.raises(UserError, match=f"no results file {results}"):
        read_rows(results)


@pytest.mark.parametrize("path", [".", "file/results.jsonl"])
def test_an_impossible_path_is_one_sentence(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not append a row"):
        append_row(tmp_path / path, row())


def test_a_full_disk_is_one_sentence_and_loses_no_row(results, small_disk):
    append_row(results, row())
    small_disk()
    with pytest.raises(UserError, match=f"could not append a row to {results}: File too large"):
        append_row(results, row(config="x" * 100_000))
    assert len(read_rows(results)) == 1
