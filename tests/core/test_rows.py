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
how = {"scheme": "minmax", "calibration": Calibration(64, 0, "voc")}
for seed in range(int(count)):
    filler = {"x": name * seed}  # rows of all lengths
    what = ("a.pth", "9f", "a.yaml", "voc", "4w4a", "all", {"AP": 1.5}, seed, "e", 1.0)
    append_row(path, Row(name, *what, versions=filler, **how))
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


def line_of(**changes):
    """A row as its line has it."""
    return json.dumps(dataclasses.asdict(row()) | changes)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "run" / "results.jsonl"


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What the project's loggers say, whether or not another test has set them up."""
    monkeypatch.setattr(logging.getLogger("ssql_det"), "propagate", True)
    return caplog


def test_rows_come_back_equal_and_in_order(results):
    protocol = {"probes": ["knn", "linear"], "rate": 0.1, "epochs": 100, "recipe": "cifar"}
    rows = [row(), row(seed=1, metrics={}), row(bits="FP", overrides={}), row(config="", protocol=protocol)]
    for each in rows:
        append_row(results, each)
    assert read_rows(results) == rows


def test_a_row_says_when_and_with_what_it_was_made():
    assert row().versions == package_versions()
    assert {"python", "torch", "numpy"} <= package_versions().keys()
    assert row().time.endswith("+00:00")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_metric_that_is_not_finite_is_null(results, value):
    append_row(results, row(metrics={"AP": value, "AP50": 1.5}))
    assert '"AP": null' in results.read_text()
    assert read_rows(results)[0].metrics == {"AP": None, "AP50": 1.5}


def test_two_writers_lose_no_row_and_tear_none(results):
    results.parent.mkdir()
    count = 1000
    command = [sys.executable, "-c", APPEND_MANY, results]
    writers = [subprocess.Popen([*command, name, str(count)]) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    rows = read_rows(results)
    assert len(rows) == 2 * count
    for name in ("one", "two"):
        assert [each.seed for each in rows if each.method == name] == list(range(count))


def test_a_writer_waits_for_the_one_in_the_middle_of_a_line(results):
    append_row(results, row())
    writer = threading.Thread(target=append_row, args=(results, row(seed=1)))
    with open(results, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"torn": ')
        writer.start()
        time.sleep(0.1)
        file.write(b'"no"}\n')
    writer.join()
    assert json.loads(results.read_bytes().splitlines()[1]) == {"torn": "no"}


@pytest.mark.parametrize("left", [1, 40, -1], ids=["first byte", "half", "all but the line's end"])
def test_a_torn_line_costs_that_row_only(results, warnings, left):
    append_row(results, row(seed=0))
    append_row(results, row(seed=1))
    first, second = results.read_bytes().splitlines()
    results.write_bytes(first + b"\n" + (second if left < 0 else second[:left]))
    append_row(results, row(seed=2))
    assert [each.seed for each in read_rows(results)] == ([0, 1, 2] if left < 0 else [0, 2])
    assert ["line 2 is torn" in record.getMessage() for record in warnings.records] == ([] if left < 0 else [True])


def test_half_a_letter_is_a_torn_line_too(results, warnings):
    append_row(results, row())
    with open(results, "ab") as file:
        file.write('{"method": "ä'.encode()[:-1])
    assert read_rows(results) == [row(time=read_rows(results)[0].time)]
    assert "is torn" in warnings.text


FOREIGN = {
    "other JSON": ('{"a": 1}', "not a result row"),
    "a list": ("[1, 2]", "not a result row"),
    "a number": ("3", "not a result row"),
    "a newer schema": (f'{{"schema": {SCHEMA + 1}, "method": "SSQL"}}', "update ssql_det"),
    "a schema that is no number": ('{"schema": "new"}', "not a result row"),
    "too few fields": (f'{{"schema": {SCHEMA}, "method": "SSQL"}}', "missing .*'seed'"),
    "bits that are a number": (line_of(bits=4), "whose bits is not what a row holds"),
    "metrics that are words": (line_of(metrics={"AP": "x"}), "whose metrics is not what"),
    "a time that is none": (line_of(time=5), "whose time is not what a row holds"),
    "a nest": ("[" * 100_000, "not a result row"),
    "a number without end": (f'{{"schema": {"9" * 5000}}}', "not a result row"),
    "an unknown field": (line_of(colour="red"), "'colour'"),
}


@pytest.mark.parametrize(("line", "hint"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_row_is_one_sentence_with_its_line(results, line, hint):
    append_row(results, row())
    with open(results, "a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(UserError, match=f"^{results}, line 3 .*{hint}"):
        read_rows(results)


WRONG = {
    "calibration": (
        *("64 images of voc, seed 0", None, {}, {"images": 64, "seed": 0}, [64, 0, "voc"]),
        *({"images": "64", "seed": 0, "data": ""}, {"images": 64, "seed": False, "data": ""}),
        *({"images": 64, "seed": 0, "data": None}, {"images": 64, "seed": 0, "data": "", "more": 1}),
    ),
    "overrides": ("res5 at 8w8a", None, ["res5"], {"res5": 8}, {"res5": ["8w8a"]}),
    "protocol": ("linear", None, ["linear"], {"rate": None}, {"probes": [1]}, {"probes": {"knn": 1}}),
    "scheme": (None, 5, ["minmax"], {"act": "mse"}),
    "placement": (None, 5, ["published"]),
    "network": (None, 5, ["resnet18"]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_field_of_a_wrong_type_is_named(results, name, value):
    results.parent.mkdir()
    results.write_text(f"{line_of(**{name: value})}\n")
    with pytest.raises(UserError, match=f"^{results}, line 1 is a row whose {name} is not what a row holds; was it "):
        read_rows(results)


def test_a_config_says_keys_by_their_names_of_today(tmp_path):
    before = row(config="voc_r18_c4.yaml SSQL.EXTRA_NORM BN 'DATASETS.TEST' SSQL")
    append_row(tmp_path / "rows.jsonl", before)
    (found,) = read_rows(tmp_path / "rows.jsonl")
    assert found.config == "voc_r18_c4.yaml SSQL_DET.EXTRA_NORM BN 'DATASETS.TEST' SSQL"


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
FOLLOWED = {"scheme": "norms=re-estimated"}


def old_line(calibration, config="voc_r18_c4.yaml SOLVER.MAX_ITER 9", **changes):
    """What schema 1 wrote."""
    fields = dataclasses.asdict(row())
    for name in ("scheme", "network", "protocol", "overrides", "placement"):
        del fields[name]
    return json.dumps(fields | {"calibration": calibration, "config": config, "schema": 1} | changes)


def old_row(results, *prose):
    results.parent.mkdir(exist_ok=True)
    results.write_text(f"{old_line(*prose)}\n")
    (found,) = read_rows(results)
    return found


@pytest.mark.parametrize(
    ("more", "typed"),
    [
        ("", {}),
        (", BN recalibrated", FOLLOWED),
        (", backbone.res5.* at 8w8a", {"overrides": {"backbone.res5.*": "8w8a"}}),
        (
            ", BN recalibrated, backbone.res5.* at 8w8a, roi_heads.[a, b]* at FP",
            FOLLOWED | {"overrides": {"backbone.res5.*": "8w8a", "roi_heads.[a, b]*": "FP"}},
        ),
    ],
)
def test_a_detectors_row_of_schema_1_is_typed(results, more, typed):
    found = old_row(results, DETECTOR + more)
    expected = row(
        config="voc_r18_c4.yaml SOLVER.MAX_ITER 9",
        time=found.time,
        calibration=Calibration(64, 3, "toy_voc_2007_trainval"),
        **{"scheme": "minmax", "network": "", "overrides": {}} | typed,
    )
    assert found == expected
    assert list(found.overrides) == list(expected.overrides)  # of patterns the last one counts
    assert (found.schema, found.placement) == (SCHEMA, "published")
    append_row(results, found)
    assert read_rows(results) == [found, found]


@pytest.mark.parametrize(
    ("config", "typed"),
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
def test_a_probes_row_of_schema_1_is_typed(results, config, typed):
    found = old_row(results, "512 images of crops, seed 0, MinMax, BN recalibrated", config)
    expected = {"config": "", "network": "narrow_resnet", "protocol": typed, "overrides": {}} | FOLLOWED
    assert found == row(time=found.time, calibration=Calibration(512, 0, "crops"), **expected)
    assert {name: type(value) for name, value in found.protocol.items()} == {
        name: type(value) for name, value in typed.items()
    }


@pytest.mark.parametrize(
    "prose",
    [
        ("64 images of voc, seed 0, MSE",),
        ("MinMax",),
        ("64 images of voc, seed 0, MinMax, BN frozen",),
        ("64 images of voc, seed 0, MinMax, backbone.res5.*",),
        (f"64 images, MinMax{', a at b' * 60}!",),  # tried in every reading it would take for ever
        (f"64 images of {', seed 0, MinMax' * 2000}!",),
        (64,),
        (None,),
        (DETECTOR, None),
        (DETECTOR, PROBE.replace("100 epochs", "some epochs")),
        (DETECTOR, "narrow_resnet; finetune; digits at 96 px, 800 and 200 images"),
    ],
)
def test_other_prose_of_schema_1_is_one_sentence_with_its_line(results, prose):
    append_row(results, row())
    with open(results, "a") as file:
        file.write(f"{old_line(DETECTOR)}\n{old_line(*prose)}\n")
    where = f"{results}, line 3 is a row of schema 1 that cannot be read: its "
    with pytest.raises(UserError, match=rf"^{where}(calibration|config) [^\n]+$"):
        read_rows(results)


def test_fields_that_schema_1_had_typed_are_looked_at_as_well(results):
    results.parent.mkdir()
    results.write_text(f"{old_line(DETECTOR, seed='0')}\n")
    with pytest.raises(UserError, match="line 1 is a row whose seed is not what a row holds"):
        read_rows(results)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_rows_go_to_a_file_of_rows_or_to_a_new_one(results, tmp_path, warnings):
    check_results_file(results)
    append_row(results, row())
    check_results_file(results)
    (tmp_path / "empty.jsonl").touch()
    check_results_file(tmp_path / "empty.jsonl")
    (tmp_path / "notes.txt").write_text("my notes\nand more\nof them\n")
    with pytest.raises(UserError, match=r"notes\.txt holds something else than result rows; name another file"):
        check_results_file(tmp_path / "notes.txt")
    assert ["line 1 and 2 more are torn" in record.getMessage() for record in warnings.records] == [True]
    with pytest.raises(UserError, match="it is a directory"):
        check_results_file(tmp_path)


def test_a_missing_file_is_one_sentence(results):
    with pytest.raises(UserError, match=f"no results at {results}"):
        read_rows(results)


@pytest.mark.parametrize("place", [".", "file/results.jsonl"])
def test_a_place_where_no_file_can_be_is_one_sentence(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not append a row"):
        append_row(tmp_path / place, row())


def test_a_full_disk_is_one_sentence_and_costs_no_row(results, small_disk):
    append_row(results, row())
    small_disk()
    with pytest.raises(UserError, match=f"could not append a row to {results}: File too large"):
        append_row(results, row(config="x" * 100_000))
    assert len(read_rows(results)) == 1
