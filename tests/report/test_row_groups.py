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


FOREIGN = {
    "empty": ("", "holds no result row"),
    "torn": ('{"method": "SS', "holds no result row"),
    "text": ("AP,AP50\n1,2\n", "holds no result row"),
    "binary": ("\x00\x01PK\x03", "holds no result row"),
    "JSON": ("[1, 2]", "line 1 is not a result row"),
    "other JSON": ('{"total_loss": 3.2, "iteration": 19}', "line 1 is not a result row"),
    "fields": ('{"schema": 2, "loss": 2}', "does not have the fields of a result row"),
    "fields of schema 1": ('{"schema": 1, "loss": 2}', "line 1 has schema 1 and cannot be converted"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_without_rows_are_refused(tmp_path, kind):
    content, said = FOREIGN[kind]
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as refusal:
        load_rows([path])
    assert str(path) in str(refusal.value)


WRONG = {
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


@pytest.mark.parametrize("name", WRONG)
def test_a_row_with_a_field_of_the_wrong_type_is_refused(tmp_path, name):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(make_row()) | {name.split()[0]: WRONG[name]}) + "\n")
    with pytest.raises(UserError, match=f"a result row with an invalid {name.split()[0]}"):
        load_rows([path])


def test_texts_become_one_printable_line(tmp_path):
    odd, printed = "a\nb \x1b[31mred \ud800", "a b ?[31mred ?"
    texts = {"method": odd, "scheme": odd, "network": odd, "placement": odd, "calibration": Calibration(8, 0, odd)}
    maps = {"overrides": {odd: odd}, "protocol": {odd: odd, "probes": ["knn", odd], "rate": 0.5}}
    rows.append_row(tmp_path / "a.jsonl", make_row(**texts, **maps))
    (found,) = load_rows([tmp_path / "a.jsonl"])
    assert {getattr(found, name) for name in ("method", "scheme", "network", "placement")} == {printed}
    assert found.calibration == Calibration(8, 0, printed)
    assert found.overrides == {printed: printed}
    assert found.protocol == {printed: printed, "probes": ["knn", printed], "rate": 0.5}


ODD_PROTOCOLS = (
    *({"linear": "fast", "rate": "high"}, {"linear": "fast", "rate": ["30"]}, {"linear": "fast"}),
    *({"probes": "linear"}, {"probes": 3}, {"linear": ["fast"], "epochs": "many"}, {"colour": "red"}),
)


@pytest.mark.parametrize("odd", ODD_PROTOCOLS, ids=str)
def test_unusual_protocols_are_shown(tmp_path, odd):
    rows.append_row(tmp_path / "a.jsonl", make_probe_row(61.25, protocol=odd))
    found = load_rows([tmp_path / "a.jsonl"])
    table = compare_with_published(1, found)
    assert find_line(table, backbone="ResNet-18").cells["linear/top1"].measured.mean == 61.25
    assert "61.2" in render_markdown(Document("", build_comparison_blocks(table)))


def test_rows_of_schema_1_fill_the_same_lines(tmp_path):
    """A detector's row and a probe's, as they were written then, beside one of today."""
    how = "fast: SGD at 30 for a batch of 512, 100 epochs; cifar at 32 px, 50000 and 10000 images"
    prose = {"config": f"cifar_resnet18; linear; {how}", "calibration": "512 images of cifar10, seed 0, MinMax"}
    followed = {"calibration": "64 images of voc_2007_trainval, seed 0, MinMax, BN recalibrated"}
    old = [
        dataclasses.asdict(make_row(50.0)) | followed,
        dataclasses.asdict(make_probe_row(80.0, seed=1, checkpoint_hash="other")) | prose,
    ]
    for each in old:
        for name in ("scheme", "network", "protocol", "overrides", "placement"):
            del each[name]
        each["schema"] = 1
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in old))
    rows.append_row(tmp_path / "a.jsonl", make_probe_row(90.0))
    found = load_rows([tmp_path / "a.jsonl"])
    detector = find_line(compare_with_published(6, found))
    assert (detector.scheme, detector.calibration) == (
        "norms=re-estimated",
        "64 images of voc_2007_trainval, seed 0",
    )
    assert find_line(compare_with_published(1, found), backbone="ResNet-18").cells["linear/top1"].measured.mean == 85.0


def test_ties_in_time_and_checkpoints_without_a_hash():
    first = make_row(50.0)
    assert keep_newest([first, make_row(60.0, time=first.time)])[0].metrics["bbox/AP50"] == 60.0
    assert len(keep_newest([make_row(checkpoint_hash=""), make_row(checkpoint_hash="", checkpoint="other.pth")])) == 2
