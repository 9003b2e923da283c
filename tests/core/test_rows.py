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
from ssql_det.core.rows import SCHEMA, Row, append, check_place, read, versions

APPEND_MANY = """
import sys
from ssql_det.core.rows import Row, append
path, name, count = sys.argv[1:]
for seed in range(int(count)):
    filler = {"x": name * seed}  # rows of all lengths
    append(path, Row(name, "a.pth", "9f", "a.yaml", "voc", "4w4a", "all", "none", {"AP": 1.5}, seed, "e", 1.0, filler))
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
        "calibration": "128 images, MinMax",
        "metrics": {"AP50": 61.2, "AP": 0.1 + 0.2},
        "seed": 0,
        "engine": "minid2",
        "seconds": 92.5,
    }
    return Row(**(fields | changes))


@pytest.fixture
def results(tmp_path):
    return tmp_path / "run" / "results.jsonl"


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What the project's loggers say, whether or not another test has set them up."""
    monkeypatch.setattr(logging.getLogger("ssql_det"), "propagate", True)
    return caplog


def test_rows_come_back_equal_and_in_order(results):
    rows = [row(), row(seed=1, metrics={}), row(bits="FP")]
    for each in rows:
        append(results, each)
    assert read(results) == rows


def test_a_row_says_when_and_with_what_it_was_made():
    assert row().versions == versions()
    assert {"python", "torch", "numpy"} <= versions().keys()
    assert row().time.endswith("+00:00")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_metric_that_is_not_finite_is_null(results, value):
    append(results, row(metrics={"AP": value, "AP50": 1.5}))
    assert '"AP": null' in results.read_text()
    assert read(results)[0].metrics == {"AP": None, "AP50": 1.5}


def test_two_writers_lose_no_row_and_tear_none(results):
    results.parent.mkdir()
    count = 1000
    command = [sys.executable, "-c", APPEND_MANY, results]
    writers = [subprocess.Popen([*command, name, str(count)]) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    rows = read(results)
    assert len(rows) == 2 * count
    for name in ("one", "two"):
        assert [each.seed for each in rows if each.method == name] == list(range(count))


def test_a_writer_waits_for_the_one_in_the_middle_of_a_line(results):
    append(results, row())
    writer = threading.Thread(target=append, args=(results, row(seed=1)))
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
    append(results, row(seed=0))
    append(results, row(seed=1))
    first, second = results.read_bytes().splitlines()
    results.write_bytes(first + b"\n" + (second if left < 0 else second[:left]))
    append(results, row(seed=2))
    assert [each.seed for each in read(results)] == ([0, 1, 2] if left < 0 else [0, 2])
    assert ["line 2 is torn" in record.getMessage() for record in warnings.records] == ([] if left < 0 else [True])


def test_half_a_letter_is_a_torn_line_too(results, warnings):
    append(results, row())
    with open(results, "ab") as file:
        file.write('{"method": "ä'.encode()[:-1])
    assert read(results) == [row(time=read(results)[0].time)]
    assert "is torn" in warnings.text


FOREIGN = {
    "other JSON": ('{"a": 1}', "not a result row"),
    "a list": ("[1, 2]", "not a result row"),
    "a number": ("3", "not a result row"),
    "a newer schema": (f'{{"schema": {SCHEMA + 1}, "method": "SSQL"}}', "update ssql_det"),
    "a schema that is no number": ('{"schema": "new"}', "not a result row"),
    "too few fields": ('{"schema": 1, "method": "SSQL"}', "missing .*'seed'"),
    "bits that are a number": (json.dumps({**vars(row()), "bits": 4}), "whose bits is not what a row holds"),
    "metrics that are words": (json.dumps({**vars(row()), "metrics": {"AP": "x"}}), "whose metrics is not what"),
    "a time that is none": (json.dumps({**vars(row()), "time": 5}), "whose time is not what a row holds"),
    "a nest": ("[" * 100_000, "not a result row"),
    "a number without end": (f'{{"schema": {"9" * 5000}}}', "not a result row"),
    "an unknown field": (json.dumps({**vars(row()), "colour": "red"}), "'colour'"),
}


@pytest.mark.parametrize(("line", "hint"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_row_is_one_sentence_with_its_line(results, line, hint):
    append(results, row())
    with open(results, "a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(UserError, match=f"^{results}, line 3 .*{hint}"):
        read(results)


def test_rows_go_to_a_file_of_rows_or_to_a_new_one(results, tmp_path, warnings):
    check_place(results)
    append(results, row())
    check_place(results)
    (tmp_path / "empty.jsonl").touch()
    check_place(tmp_path / "empty.jsonl")
    (tmp_path / "notes.txt").write_text("my notes\nand more\nof them\n")
    with pytest.raises(UserError, match=r"notes\.txt holds something else than result rows; name another file"):
        check_place(tmp_path / "notes.txt")
    assert ["line 1 and 2 more are torn" in record.getMessage() for record in warnings.records] == [True]
    with pytest.raises(UserError, match="it is a directory"):
        check_place(tmp_path)


def test_a_missing_file_is_one_sentence(results):
    with pytest.raises(UserError, match=f"no results at {results}"):
        read(results)


@pytest.mark.parametrize("place", [".", "file/results.jsonl"])
def test_a_place_where_no_file_can_be_is_one_sentence(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not append a row"):
        append(tmp_path / place, row())


def test_a_full_disk_is_one_sentence_and_costs_no_row(results, small_disk):
    append(results, row())
    small_disk()
    with pytest.raises(UserError, match=f"could not append a row to {results}: File too large"):
        append(results, row(config="x" * 100_000))
    assert len(read(results)) == 1
