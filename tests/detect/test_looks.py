"""Looks at a detector while it trains: rows and curves beside the training, which goes on as if nobody looked."""

import json

import pytest
from detect.making import C4, LAST, config
from detect.runs import LOOKING, final, same, stopped_in_step

from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.detect.train import train


def test_looking_leaves_rows_and_does_not_change_what_is_trained(whole_run, tmp_path):
    train(config(C4, tmp_path, **LOOKING), C4)
    looks = [(row.checkpoint, row.bits, row.dataset, row.scope) for row in rows.read(tmp_path / "looks.jsonl")]
    places = [f"iteration {iteration}" for iteration in (3, 7, LAST)]
    assert looks == [(place, bits, "toy_voc_2007_test", "all") for place in places for bits in ("FP", "4w4a")]
    ours, theirs = final(tmp_path), final(whole_run)
    ours["model"], theirs["model"] = (
        {name: value for name, value in each["model"].items() if not name.endswith("num_batches_tracked")}
        for each in (ours, theirs)
    )
    assert same(ours, theirs)
    lines = [json.loads(each) for each in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "toy_voc_2007_test/4w4a/bbox/AP50" in line] == [3, 7, LAST]


def test_a_resumed_run_has_each_look_once(tmp_path):
    with stopped_in_step(6):
        train(config(C4, tmp_path, **LOOKING), C4)
    train(config(C4, tmp_path, **LOOKING), C4, resume=True)
    looks = [(row.checkpoint, row.bits) for row in rows.read(tmp_path / "looks.jsonl")]
    assert len(looks) == len(set(looks)) == 6


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        pytest.param({"SSQL__SCOPE": "head"}, "SSQL.SCOPE is backbone or all, got 'head'"),
        pytest.param({"SSQL__CALIB_IMAGES": 0}, "SSQL.CALIB_IMAGES must be 1 or more, got 0"),
        ({"SSQL__EVAL_BITS": ["99"]}, "99"),
    ],
)
def test_a_look_that_cannot_be_is_refused_before_the_training(keys, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        train(config(C4, tmp_path / "run", **(LOOKING | keys)), C4)
    assert not (tmp_path / "run").exists()
