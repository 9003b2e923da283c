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
    """Turn the files of a sweep into those of an earlier version, with the rows of these bit-widths."""
    kept = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in kept:
        for name in ("scheme", "network", "protocol", "overrides", "placement"):
            del row[name]
        row.update(calibration=calibration, schema=1)
    lines = [json.dumps(row) + "\n" for row in kept if row["bits"] in widths]
    assert len(lines) == len(widths)
    (folder / "results.jsonl").write_text("".join(lines))
    sweep_settings = json.loads((folder / "sweep.json").read_text())
    sweep_settings["--recalibrate-bn"] = sweep_settings.pop("--scheme") == "norms=re-estimated"
    sweep_settings = {key.replace("SSQL_DET.", "SSQL."): value for key, value in sweep_settings.items()}
    sweep_settings |= {f"SSQL.{key}": value for key, value in TRAINING_EVALUATION_KEYS.items()}
    (folder / "sweep.json").write_text(json.dumps(dict(sorted(sweep_settings.items())), indent=1))
    del sweep_settings["reconstruction images"], sweep_settings["selection images"]
    (folder / "quantization.safetensors").unlink()
    (folder / "ranges.json").write_text(json.dumps({"format": "ssql_det ranges", "version": 1, "points": {}}))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("settings", "prose"), CALIBRATION_PROSE.values(), ids=CALIBRATION_PROSE)
def test_finished_rows_are_kept_and_the_rest_is_calibrated_again(settings, prose, learned, caplog, tmp_path):
    expected = run_sweep(learned, tmp_path, "FP,4,5", settings)
    saved = (tmp_path / "quantization.safetensors").read_bytes()
    write_former_sweep(tmp_path, prose)
    before = files(tmp_path)
    found = run_sweep(learned, tmp_path, "FP,4,5", settings)
    expected_rows = [dataclasses.replace(row, network="") for row in expected[:2]]  # schema 1 has no network
    assert found[:2] == expected_rows
    assert rows_by_bits(found[2:]) == rows_by_bits(expected[2:])
    assert warnings(caplog) == [
        f"{tmp_path}/ranges.json was written by an earlier version and is ignored; calibrating again"
    ]
    after = files(tmp_path)
    assert after["results.jsonl"].startswith(before["results.jsonl"])
    assert rows.read_rows(tmp_path / "results.jsonl") == found
    assert after["ranges.json"] == before["ranges.json"]
    if settings is not RE_ESTIMATED:  # those of FP and of 4 bits are not needed again
        assert after["quantization.safetensors"] == saved
    run_sweep(learned, tmp_path, "FP,6", settings)
    assert len(warnings(caplog)) == 1, "the calibration is saved now"


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
    ("settings", "differences"),
    [
        (
            SETTINGS,
            {
                "--scheme 'minmax' (now 'norms=re-estimated')": RE_ESTIMATED,
                "--calib-images 4 (now 5)": QuantizationSettings("all", Calibration(5)),
            },
        ),
        (RE_ESTIMATED, {"--scheme 'norms=re-estimated' (now 'minmax')": SETTINGS}),
    ],
)
def test_another_sweep_in_the_folder_is_refused(settings, differences, learned, tmp_path):
    (prose,) = [prose for known, prose in CALIBRATION_PROSE.values() if known is settings]
    run_sweep(learned, tmp_path, "FP", settings)
    write_former_sweep(tmp_path, prose, ("FP",))
    before = files(tmp_path)
    for difference, other in differences.items():
        with pytest.raises(UserError) as refusal:
            run_sweep(learned, tmp_path, "FP,4", other)
        assert str(refusal.value) == f"the sweep in {tmp_path} has {difference}; choose another OUTPUT_DIR"
        assert files(tmp_path) == before


def test_a_sweep_without_rows_begins_again(learned, caplog, tmp_path):
    """A sweep that was killed in its first evaluation has sweep.json and ranges.json."""
    expected = run_sweep(learned, tmp_path, "4")
    write_former_sweep(tmp_path, MINMAX_PROSE, ("4w4a",))
    (tmp_path / "results.jsonl").unlink()
    assert rows_by_bits(run_sweep(learned, tmp_path, "4")) == rows_by_bits(expected)
    assert len(warnings(caplog)) == 1
