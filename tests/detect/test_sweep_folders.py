"""A folder holds one sweep: another one is refused, and a killed one resumes to the same rows."""

from functools import partial

import pytest
import torch
from support.detect.sweeps import SETTINGS, TEST, run_sweep, sweep_arguments
from support.detect.training_runs import rows_by_bits
from support.kills import repeat_until_killed, run_whole

from ssql_det import d2
from ssql_det.core import rows
from ssql_det.core.errors import UserError
from ssql_det.detect import quantized_evaluation
from ssql_det.detect.quantized_evaluation import QuantizationSettings
from ssql_det.quant import Bits, Calibration, Scheme

QUANTIZATION = "quantization.safetensors"

# ---- which sweep it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "keys", "difference"),
    [
        (SETTINGS, {"MODEL__ROI_HEADS__NMS_THRESH_TEST": 0.3}, "MODEL.ROI_HEADS.NMS_THRESH_TEST 0.5 (now 0.3)"),
        (SETTINGS, {"INPUT__MIN_SIZE_TEST": 72}, "INPUT.MIN_SIZE_TEST 64 (now 72)"),
        (QuantizationSettings("all", Calibration(5)), {}, "--calib-images 4 (now 5)"),
        (QuantizationSettings("backbone", Calibration(4)), {}, "--scope 'all' (now 'backbone')"),
        (QuantizationSettings("all", Calibration(4, seed=1)), {}, "--calib-seed 0 (now 1)"),
        (QuantizationSettings("all", Calibration(4, selection_images=2)), {}, "selection images 0 (now 2)"),
        (
            QuantizationSettings("all", Calibration(4), Scheme(norms="re-estimated")),
            {},
            "--scheme 'minmax' (now 'norms=re-estimated')",
        ),
        (
            QuantizationSettings("all", Calibration(4), overrides={"*": Bits(8, 8)}),
            {},
            "--bits-file {} (now {'*': '8w8a'})",
        ),
        (
            QuantizationSettings("backbone", Calibration(5)),
            {},
            "--scope 'all' (now 'backbone'), --calib-images 4 (now 5)",
        ),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused_with_the_difference(
    settings, keys, difference, whole_sweep, learned
):
    folder, _ = whole_sweep
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError) as refusal:
        run_sweep(learned, folder, "FP,5", settings, **keys)
    assert str(refusal.value) == f"the sweep in {folder} has {difference}; choose another OUTPUT_DIR"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_sweep_of_other_weights_is_refused(whole_sweep, learned, tmp_path):
    content = torch.load(learned, weights_only=False)
    content["model"]["backbone.stem.conv1.weight"] += 1e-3
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(UserError, match=r"the sweep in .* has weights' sha256 "):
        run_sweep(tmp_path / "model_final.pth", whole_sweep[0])


def test_a_sweep_on_other_annotations_of_the_same_name_is_refused(whole_sweep, learned, monkeypatch):
    records = d2.DatasetCatalog.get(TEST)
    records[0]["annotations"] = records[0]["annotations"][1:]
    monkeypatch.setattr(d2.DatasetCatalog, "get", lambda name: records)
    with pytest.raises(UserError, match=r"the sweep in .* has the objects' sha256 '"):
        run_sweep(learned, whole_sweep[0])


def test_a_sweep_with_another_order_of_overrides_is_refused(learned, tmp_path):
    first = {"*": Bits(8, 8), "backbone.*": Bits(4, 4)}
    run_sweep(learned, tmp_path, "5", QuantizationSettings("all", Calibration(4), overrides=first))
    with pytest.raises(UserError, match="--bits-file"):
        run_sweep(
            learned, tmp_path, "5", QuantizationSettings("all", Calibration(4), overrides=dict(reversed(first.items())))
        )


def test_the_path_of_the_weights_and_the_workers_do_not_matter(whole_sweep, learned, tmp_path):
    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(learned.read_bytes())
    assert run_sweep(copy, whole_sweep[0], DATALOADER__NUM_WORKERS=1) == whole_sweep[1]


def test_a_damaged_settings_file_is_refused(learned, tmp_path):
    for content in ("{", "[1]"):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match=r"sweep\.json is damaged; choose another OUTPUT_DIR"):
            run_sweep(learned, tmp_path)


# ---- killed --------------------------------------------------------------------------------------------------------


def test_a_sweep_killed_between_widths_resumes_to_the_same_rows(whole_sweep, learned, in_process, tmp_path):
    log, results = tmp_path / "log", tmp_path / "out/results.jsonl"
    killed = in_process(sweep_arguments(learned, tmp_path / "out"), log, file=str(results), lines=1)
    assert killed["status"] == -9, log.read_text()
    first = results.read_bytes()
    assert 1 <= first.count(b"\n") < 3
    results.write_bytes(first + b'{"method": "SSQ')  # as a kill in mid-line leaves it
    assert in_process(sweep_arguments(learned, tmp_path / "out"), log)["status"] == 0, log.read_text()
    assert results.read_bytes().startswith(first)
    found = rows.read_rows(results)
    assert [row.bits for row in found] == ["FP", "8w8a", "4w4a"]
    assert [row.metrics for row in found] == [row.metrics for row in whole_sweep[1]]


def test_a_sweep_killed_anywhere_resumes_to_the_same_rows_and_calibration(learned, in_process, tmp_path):
    """kill -9 at moments that nobody chose, many of them in the calibration."""
    log, folder, many = tmp_path / "log", tmp_path / "whole", {"bits": "FP,5,4", "calib_images": "12"}
    arguments = partial(sweep_arguments, learned, **many)
    seconds = run_whole(in_process, arguments(folder), log)
    for out, killed in repeat_until_killed(in_process, arguments, tmp_path, seconds, 4):
        ours, theirs = (rows_by_bits(rows.read_rows(each / "results.jsonl")) for each in (out, folder))
        assert list(ours) == list(theirs) == ["FP", "5w5a", "4w4a"], f"killed after {killed} s"
        assert ours == theirs
        assert (out / QUANTIZATION).read_bytes() == (folder / QUANTIZATION).read_bytes()
        assert not list(out.glob(".*"))


# ---- sweeps that came to nothing -----------------------------------------------------------------------------------


def test_a_sweep_without_rows_is_replaced(learned, monkeypatch, tmp_path):
    out, new, other = tmp_path / "out", tmp_path / "new", QuantizationSettings("all", Calibration(12))
    with monkeypatch.context() as patch:
        patch.setattr("ssql_det.detect.sweep.evaluate_quantized", lambda *ignored: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_sweep(learned, out, settings=QuantizationSettings("all", Calibration(1)))
    assert {path.name for path in out.iterdir()} == {"sweep.json", QUANTIZATION}
    assert rows_by_bits(run_sweep(learned, out, "4", other)) == rows_by_bits(run_sweep(learned, new, "4", other))
    for name in ("sweep.json", QUANTIZATION):
        assert (out / name).read_bytes() == (new / name).read_bytes()


def test_a_sweep_whose_folder_was_taken_adds_no_row(learned, monkeypatch, tmp_path):
    def beside(*given):
        patch.setattr("ssql_det.detect.sweep.evaluate_quantized", quantized_evaluation.evaluate_quantized)
        run_sweep(learned, tmp_path, "4", QuantizationSettings("all", Calibration(12)))
        return quantized_evaluation.evaluate_quantized(*given)

    with monkeypatch.context() as patch:
        patch.setattr("ssql_det.detect.sweep.evaluate_quantized", beside)
        with pytest.raises(UserError, match=r"has --calib-images 12 \(now 4\); choose another OUTPUT_DIR"):
            run_sweep(learned, tmp_path, "8")
    assert [row.bits for row in rows.read_rows(tmp_path / "results.jsonl")] == ["4w4a"]


def test_a_sweep_that_was_refused_leaves_its_folder_free(learned, tmp_path):
    with pytest.raises(UserError, match="toy_voc_2007_trianval"):
        run_sweep(learned, tmp_path, DATASETS__TRAIN=("toy_voc_2007_trianval",))
    assert len(run_sweep(learned, tmp_path, "FP")) == 1
