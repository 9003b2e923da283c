"""``benchmarks/toy_detectors.py`` measures each cell of a study once."""

import importlib
from pathlib import Path

import pytest
from support.detect.configs import C4, tiny_overrides

import ssql_det
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.quant import Bits, Scheme


@pytest.fixture
def toy_detectors(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(ssql_det.__file__).parents[1] / "benchmarks"))
    return importlib.import_module("toy_detectors")


@pytest.mark.slow
def test_measuring_gives_rows_once_and_only_of_the_same_weights(toy_detectors, learned, tmp_path, monkeypatch):
    monkeypatch.setattr(toy_detectors, "CALIBRATION", Calibration(4, reconstruction_images=2, selection_images=4))
    detector = toy_detectors.Detector(C4, 0, learned.parent, tmp_path / "rows", keys=(*tiny_overrides(),), chooses=True)
    matched = Scheme(weight="centred", norms="matched")
    cells = [toy_detectors.FLOAT, toy_detectors.Cell(Bits(4, 4), matched)]
    toy_detectors.measure(detector, cells)
    results = detector.read_results()
    toy_detectors.measure(detector, cells)
    assert detector.read_results() == results
    assert {key[:2] for key in results} == {("FP", "minmax"), ("4w4a", str(matched))}
    assert all(each.keys() == {"selection", "test"} for each in results.values())
    file = detector.rows / "test.jsonl"
    file.write_text(file.read_text().replace(results[cells[0].key]["test"].checkpoint_hash, "0" * 64))
    with pytest.raises(UserError, match="of other weights"):
        toy_detectors.measure(detector, [toy_detectors.Cell(Bits(2, 4))])
