"""Evaluations during a training write rows and curves, and do not change the training."""

import json

import pytest
from support.detect.configs import C4, LAST, config
from support.detect.training_runs import WITH_EVALUATIONS, is_equal, read_final, stopping_in_step

from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.detect.train import train


def test_evaluations_write_rows_and_do_not_change_the_training(whole_run, tmp_path):
    train(config(C4, tmp_path, **WITH_EVALUATIONS), C4)
    evaluations = [
        (row.checkpoint, row.bits, row.dataset, row.scope) for row in rows.read_rows(tmp_path / "evaluations.jsonl")
    ]
    checkpoints = [f"iteration {iteration}" for iteration in (3, 7, LAST)]
    assert evaluations == [
        (checkpoint, bits, "toy_voc_2007_test", "all") for checkpoint in checkpoints for bits in ("FP", "4w4a")
    ]
    ours, theirs = read_final(tmp_path), read_final(whole_run)
    ours["model"], theirs["model"] = (
        {name: value for name, value in each["model"].items() if not name.endswith("num_batches_tracked")}
        for each in (ours, theirs)
    )
    assert is_equal(ours, theirs)
    lines = [json.loads(each) for each in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "toy_voc_2007_test/4w4a/bbox/AP50" in line] == [3, 7, LAST]


def test_a_resumed_run_has_each_evaluation_once_and_may_change_its_scheme(tmp_path):
    with stopping_in_step(6):
        train(config(C4, tmp_path, **WITH_EVALUATIONS), C4)
    (tmp_path / "evaluations.jsonl").rename(tmp_path / "looks.jsonl")  # the name in earlier versions
    scheme = "weight=centred, act=mse, norms=re-estimated"
    train(config(C4, tmp_path, **(WITH_EVALUATIONS | {"SSQL_DET__SCHEME": scheme})), C4, resume=True)
    found = [row for name in ("looks", "evaluations") for row in rows.read_rows(tmp_path / f"{name}.jsonl")]
    evaluations = [(row.checkpoint, row.bits) for row in found]
    assert len(evaluations) == len(set(evaluations)) == 6
    assert [row.scheme for row in found] == ["minmax", "minmax", *[scheme] * 4]
    for row in found:
        assert row.calibration == Calibration(2, 0, "toy_voc_2007_trainval")
        assert (row.network, row.checkpoint_hash) == ("narrow_resnet", "")


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        pytest.param(
            {"SSQL_DET__SCOPE": "head"}, r"SSQL_DET.SCOPE must be backbone or backbone\+neck or all, got 'head'"
        ),
        pytest.param({"SSQL_DET__CALIB_IMAGES": 0}, "SSQL_DET.CALIB_IMAGES must be 1 or more, got 0"),
        ({"SSQL_DET__EVAL_BITS": ["99"]}, "99"),
        ({"SSQL_DET__SCHEME": "minmx"}, "unknown weight quantizer 'minmx'; did you mean 'minmax'?"),
        (
            {"SSQL_DET__SCHEME": "act=mse", "SSQL_DET__EVAL_BITS": ["8", "12"]},
            "act=mse supports 2 to 10 bits, not 12",
        ),
    ],
)
def test_invalid_evaluation_settings_are_refused_before_the_training(keys, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        train(config(C4, tmp_path / "run", **(WITH_EVALUATIONS | keys)), C4)
    assert not (tmp_path / "run").exists()
