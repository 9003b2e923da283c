"""Loading, cleaning and grouping of result rows."""

import dataclasses
import json

import pytest
from support.report.rows import find_line, make_probe_row, make_row

from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.report.comparison import compare_with_published
from ssql_det.report.comparison_blocks import build_comparison_blocks
from ssql_det.report.document import Document
from ssql_det.report.render_markdown import render_markdown
from ssql_det.report.row_groups import keep_newest, load_rows


def test_rows_of_several_files_are_read_in_order(tmp_path):
    rows.append_row(tmp_path / "a.jsonl", make_row(50.0))
    rows.append_row(tmp_path / "b.jsonl", make_row(60.0))
    assert [each.metrics["bbox/AP50"] for each in load_rows([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])] == [60, 50]
    assert load_rows([]) == []


def test_a_truncated_last_line_is_skipped(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    rows.append_row(path, make_row())
    path.write_text(path.read_text() + path.read_text()[:50])
    assert len(load_rows([path])) == 1
    assert "line 2 is truncated" in caplog.text


INVALID_FILES = {
    "empty": ("", "holds no result row"),
    "torn": ('{"method": "SS', "holds no result row"),
    "text": ("AP,AP50\n1,2\n", "holds no result row"),
    "binary": ("\x00\x01PK\x03", "holds no result row"),
    "JSON": ("[1, 2]", "line 1 is not a result row"),
    "other JSON": ('{"total_loss": 3.2, "iteration": 19}', "line 1 is not a result row"),
    "fields": ('{"schema": 2, "loss": 2}', "does not have the fields of a result row"),
    "fields of schema 1": ('{"schema": 1, "loss": 2}', "line 1 has schema 1 and cannot be converted"),
}


@pytest.mark.parametrize("kind", INVALID_FILES)
def test_files_without_rows_are_refused(tmp_path, kind):
    content, message = INVALID_FILES[kind]
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        load_rows([path])
    assert str(path) in str(refusal.value)


WRONG_FIELDS = {
    "method": None,
    "bits": 4,
    "config": ["a"],
    "calibration": {},
    "scheme": None,
    "network": 18,
    "overrides": {"res5": 8},
    "seed": "0",
    "time": "yesterday",
    "metrics": [1.0],
    **{f"metrics {value!r}": {"AP": value} for value in ("61.2", True, [1], float("nan"), 1e301, 10**400)},
    **{f"protocol {value!r}": {"rate": value} for value in (None, True, [1], {}, float("nan"), 1e301, 10**400)},
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_row_with_a_field_of_the_wrong_type_is_refused(tmp_path, name):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(make_row()) | {name.split()[0]: WRONG_FIELDS[name]}) + "\n")
    with pytest.raises(UserError, match=f"a result row with an invalid {name.split()[0]}"):
        load_rows([path])


def test_texts_become_one_printable_line(tmp_path):
    text, cleaned = "a\nb \x1b[31mred \ud800", "a b ?[31mred ?"
    texts = {"method": text, "scheme": text, "network": text, "placement": text, "calibration": Calibration(8, 0, text)}
    maps = {"overrides": {text: text}, "protocol": {text: text, "probes": ["knn", text], "rate": 0.5}}
    rows.append_row(tmp_path / "a.jsonl", make_row(**texts, **maps))
    (loaded,) = load_rows([tmp_path / "a.jsonl"])
    assert {getattr(loaded, name) for name in ("method", "scheme", "network", "placement")} == {cleaned}
    assert loaded.calibration == Calibration(8, 0, cleaned)
    assert loaded.overrides == {cleaned: cleaned}
    assert loaded.protocol == {cleaned: cleaned, "probes": ["knn", cleaned], "rate": 0.5}


ODD_PROTOCOLS = (
    *({"linear": "fast", "rate": "high"}, {"linear": "fast", "rate": ["30"]}, {"linear": "fast"}),
    *({"probes": "linear"}, {"probes": 3}, {"linear": ["fast"], "epochs": "many"}, {"colour": "red"}),
)


@pytest.mark.parametrize("odd", ODD_PROTOCOLS, ids=str)
def test_unusual_protocols_are_shown(tmp_path, odd):
    rows.append_row(tmp_path / "a.jsonl", make_probe_row(61.25, protocol=odd))
    loaded = load_rows([tmp_path / "a.jsonl"])
    table = compare_with_published(1, loaded)
    assert find_line(table, backbone="ResNet-18").cells["linear/top1"].measured.mean == 61.25
    assert "61.2" in render_markdown(Document("", build_comparison_blocks(table)))


def test_rows_of_schema_1_fill_the_same_lines(tmp_path):
    """A row of a detector and one of a probe, as schema 1 stored them, beside a row of today."""
    protocol = "fast: SGD at 30 for a batch of 512, 100 epochs; cifar at 32 px, 50000 and 10000 images"
    prose = {"config": f"cifar_resnet18; linear; {protocol}", "calibration": "512 images of cifar10, seed 0, MinMax"}
    re_estimated = {"calibration": "64 images of voc_2007_trainval, seed 0, MinMax, BN recalibrated"}
    old = [
        dataclasses.asdict(make_row(50.0)) | re_estimated,
        dataclasses.asdict(make_probe_row(80.0, seed=1, checkpoint_hash="other")) | prose,
    ]
    for record in old:
        for name in ("scheme", "network", "protocol", "overrides", "placement"):
            del record[name]
        record["schema"] = 1
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in old))
    rows.append_row(tmp_path / "a.jsonl", make_probe_row(90.0))
    loaded = load_rows([tmp_path / "a.jsonl"])
    detector = find_line(compare_with_published(6, loaded))
    assert (detector.scheme, detector.calibration) == (
        "norms=re-estimated",
        "64 images of voc_2007_trainval, seed 0",
    )
    assert find_line(compare_with_published(1, loaded), backbone="ResNet-18").cells["linear/top1"].measured.mean == 85.0


def test_ties_in_time_and_checkpoints_without_a_hash():
    first = make_row(50.0)
    assert keep_newest([first, make_row(60.0, time=first.time)])[0].metrics["bbox/AP50"] == 60.0
    assert len(keep_newest([make_row(checkpoint_hash=""), make_row(checkpoint_hash="", checkpoint="other.pth")])) == 2
