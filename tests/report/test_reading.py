import dataclasses
import json

import pytest
from report.making import row

from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.report.reading import newest, read_rows


def test_rows_of_several_files_are_read_in_order(tmp_path):
    rows.append(tmp_path / "a.jsonl", row(50.0))
    rows.append(tmp_path / "b.jsonl", row(60.0))
    assert [each.metrics["bbox/AP50"] for each in read_rows([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])] == [60, 50]
    assert read_rows([]) == []


def test_a_torn_last_line_costs_that_line_alone(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    rows.append(path, row())
    path.write_text(path.read_text() + path.read_text()[:50])
    assert len(read_rows([path])) == 1
    assert "line 2 is torn" in caplog.text


FOREIGN = {
    "empty": ("", "holds no result row"),
    "torn": ('{"method": "SS', "holds no result row"),
    "text": ("AP,AP50\n1,2\n", "holds no result row"),
    "binary": ("\x00\x01PK\x03", "holds no result row"),
    "JSON": ("[1, 2]", "line 1 is not a result row"),
    "other JSON": ('{"total_loss": 3.2, "iteration": 19}', "line 1 is not a result row"),
    "fields": ('{"schema": 1, "loss": 2}', "does not have a row's fields"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_file_of_rows_is_refused(tmp_path, kind):
    content, said = FOREIGN[kind]
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as refusal:
        read_rows([path])
    assert str(path) in str(refusal.value)


WRONG = {
    "method": None,
    "bits": 4,
    "config": ["a"],
    "calibration": {},
    "seed": "0",
    "time": "yesterday",
    "metrics": [1.0],
    **{f"metrics {value!r}": {"AP": value} for value in ("61.2", True, [1], float("nan"), 1e301, 10**400)},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_with_a_field_of_another_kind_is_refused(tmp_path, name):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(dataclasses.asdict(row()) | {name.split()[0]: WRONG[name]}) + "\n")
    with pytest.raises(UserError, match=f"a row whose {name.split()[0]} is not what a row holds"):
        read_rows([path])


def test_texts_become_one_printable_line(tmp_path):
    rows.append(tmp_path / "a.jsonl", row(method="a\nb \x1b[31mred \ud800"))
    assert read_rows([tmp_path / "a.jsonl"])[0].method == "a b ?[31mred ?"


def test_of_one_second_the_later_counts_and_without_a_hash_the_name_tells():
    first = row(50.0)
    assert newest([first, row(60.0, time=first.time)])[0].metrics["bbox/AP50"] == 60.0
    assert len(newest([row(checkpoint_hash=""), row(checkpoint_hash="", checkpoint="other.pth")])) == 2
