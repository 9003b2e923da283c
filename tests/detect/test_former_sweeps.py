"""A sweep of an earlier version, with rows of schema 1, is continued."""

import dataclasses
import json
import logging

import pytest
from support.detect.sweeps import SETTINGS, run_sweep
from support.detect.training_runs import rows_by_bits

from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.quant import Bits, Calibration, Scheme

RE_ESTIMATED = QuantizationSettings("all", Calibration(4), Scheme(norms="re-estimated"))
OVERRIDDEN = QuantizationSettings(
    "all", Calibration(4), overrides={"backbone.res4.*": Bits(8, 8), "roi_heads.*": Bits(6, 6)}
)
MINMAX_PROSE = "4 images of toy_voc_2007_trainval, seed 0, MinMax"
CALIBRATION_PROSE = {  # by a row of schema 1
    "minmax": (SETTINGS, MINMAX_PROSE),
    "norms": (RE_ESTIMATED, f"{MINMAX_PROSE}, BN recalibrated"),
    "bits file": (OVERRIDDEN, f"{MINMAX_PROSE}, backbone.res4.* at 8w8a, roi_heads.* at 6w6a"),
}
TRAINING_EVALUATION_KEYS = {"EVAL_PERIOD": 0, "EVAL_BITS": ["FP", "8w8a", "4w4a"], "SCOPE": "all", "CALIB_IMAGES": 32}


def write_former_sweep(folder, calibration, widths=("FP", "4w4a")):
    """Turn what a sweep has left into what it would have been, with the rows of these widths."""
    kept = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in kept:
        for name in ("scheme", "network", "protocol", "overrides", "placement"):
            del row[name]
        row.update(calibration=calibration, schema=1)
    lines = [json.dumps(row) + "\n" for row in kept if row["bits"] in widths]
    assert len(lines) == len(widths)
    (folder / "results.jsonl").write_text("".join(lines))
    plan = json.loads((folder / "sweep.json").read_text())
    plan["--recalibrate-bn"] = plan.pop("--scheme") == "norms=re-estimated"
    plan = {key.replace("SSQL_DET.", "SSQL."): value for key, value in plan.items()}
    plan |= {f"SSQL.{key}": value for key, value in TRAINING_EVALUATION_KEYS.items()}
    (folder / "sweep.json").write_text(json.dumps(dict(sorted(plan.items())), indent=1))
    (folder / "quantization.safetensors").unlink()
    (folder / "ranges.json").write_text(json.dumps({"format": "ssql_det ranges", "version": 1, "points": {}}))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("plan", "said"), CALIBRATION_PROSE.values(), ids=CALIBRATION_PROSE)
def test_finished_rows_are_kept_and_the_rest_is_calibrated_again(plan, prose, learned, caplog, tmp_path):
    expected = run_sweep(learned, tmp_path, "FP,4,5", plan)
    saved = (tmp_path / "quantization.safetensors").read_bytes()
    write_former_sweep(tmp_path, prose)
    before = files(tmp_path)
    found = run_sweep(learned, tmp_path, "FP,4,5", plan)
    as_older = [dataclasses.replace(row, network="") for row in expected[:2]]  # schema 1 did not say
    assert found[:2] == as_older
    assert rows_by_bits(found[2:]) == rows_by_bits(expected[2:])
    assert warnings(caplog) == [f"{tmp_path}/ranges.json is of an older ssql_det and is not read; calibrating again"]
    after = files(tmp_path)
    assert after["results.jsonl"].startswith(before["results.jsonl"])
    assert rows.read_rows(tmp_path / "results.jsonl") == found
    assert after["ranges.json"] == before["ranges.json"]
    if plan is not RE_ESTIMATED:  # those of FP and of 4 bits are not needed again
        assert after["quantization.safetensors"] == saved
    run_sweep(learned, tmp_path, "FP,6", plan)
    assert len(warnings(caplog)) == 1, "there is a calibration now"


def test_a_finished_sweep_is_read_as_it_is(whole_sweep, learned, caplog, tmp_path):
    run_sweep(learned, tmp_path)
    write_former_sweep(tmp_path, MINMAX_PROSE, ("FP", "8w8a", "4w4a"))
    before = files(tmp_path)
    found = run_sweep(learned, tmp_path)
    assert {
        bits: dataclasses.replace(row, network="narrow_resnet") for bits, row in rows_by_bits(found).items()
    } == rows_by_bits(whole_sweep[1])
    assert not warnings(caplog)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("plan", "other", "difference"),
    [
        (SETTINGS, RE_ESTIMATED, "--scheme 'minmax' (now 'norms=re-estimated')"),
        (RE_ESTIMATED, SETTINGS, "--scheme 'norms=re-estimated' (now 'minmax')"),
        (SETTINGS, QuantizationSettings("all", Calibration(5)), "--calib-images 4 (now 5)"),
    ],
)
def test_another_sweep_in_the_folder_is_refused(plan, other, difference, learned, tmp_path):
    (prose,) = [prose for known, prose in CALIBRATION_PROSE.values() if known is plan]
    run_sweep(learned, tmp_path, "FP", plan)
    write_former_sweep(tmp_path, prose, ("FP",))
    before = files(tmp_path)
    with pytest.raises(UserError) as refusal:
        run_sweep(learned, tmp_path, "FP,4", other)
    assert str(refusal.value) == f"the sweep in {tmp_path} has {difference}; choose another OUTPUT_DIR"
    assert files(tmp_path) == before


def test_a_sweep_without_rows_begins_again(learned, caplog, tmp_path):
    """Killed in its first evaluation: the plan and the ranges were there."""
    expected = run_sweep(learned, tmp_path, "4")
    write_former_sweep(tmp_path, MINMAX_PROSE, ("4w4a",))
    (tmp_path / "results.jsonl").unlink()
    assert rows_by_bits(run_sweep(learned, tmp_path, "4")) == rows_by_bits(expected)
    assert len(warnings(caplog)) == 1
