"""The studies on toy detectors measure each cell once, and choose by selection images, not by the test set."""

import importlib
import itertools
from pathlib import Path

import pytest

import ssql_det
from ssql_det.core import rows
from ssql_det.core.rows import Calibration, Row
from ssql_det.quant import Bits

BENCHMARKS = Path(ssql_det.__file__).parents[1] / "benchmarks"


@pytest.fixture
def toy_detectors(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("toy_detectors")


@pytest.fixture
def measured(toy_detectors, monkeypatch):
    """Instead of measuring, each cell has an AP of its own on each data set; returns them."""
    aps, numbers = {}, itertools.count()

    def write_rows(detector, cells):
        detector.rows.mkdir(parents=True, exist_ok=True)
        missing = [cell for cell in cells if cell.key not in detector.read_results()]
        for cell, name in itertools.product(missing, detector.datasets):
            ap = aps[(str(detector.rows), cell.key, name)] = float(next(numbers) * 37 % 101)
            metrics = {"bbox/AP": ap, toy_detectors.SECONDS: 1.0}
            row = Row(
                "",
                "",
                "",
                "",
                name,
                cell.key[0],
                cell.scope,
                metrics,
                detector.seed,
                "",
                0.0,
                cell.key[1],
                Calibration(),
                overrides={pattern: str(bits) for pattern, bits in cell.overrides.items()},
            )
            rows.append_row(detector.rows / f"{name}.jsonl", row)

    def run_jobs(processes, function, arguments):
        for each in arguments:
            if function is toy_detectors.measure:
                write_rows(*each)

    monkeypatch.setattr(toy_detectors, "_run_jobs", run_jobs)
    return aps


@pytest.mark.parametrize(
    ("module", "name"), [("repair_study", "RepairStudy"), ("any_precision_study", "AnyPrecisionStudy")]
)
def test_a_study_prints_all_its_tables(module, name, measured, toy_detectors, tmp_path, capsys):
    study = getattr(importlib.import_module(module), name)(tmp_path / "run", tmp_path / "out", range(2), 1)
    for print_table in study.run_stages():
        print_table()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert len(lines) > 4
        assert not any("nan" in line for line in lines)


def test_cells_are_chosen_by_selection_images(measured, toy_detectors, tmp_path):
    study = importlib.import_module("repair_study").RepairStudy(tmp_path / "run", tmp_path / "out", range(2), 1)
    next(study.run_stages())
    first, second = study.get_detectors("c4")
    cells = study.list_nearest("c4", Bits(2, 4))
    chosen = study.choose_nearest("c4", Bits(2, 4))
    assert len(cells) == 12
    assert chosen == max(cells, key=lambda cell: measured[(str(first.rows), cell.key, "selection")])
    assert chosen != max(cells, key=lambda cell: measured[(str(first.rows), cell.key, "test")])
    assert not (second.rows / "selection.jsonl").exists()


def test_format_values_is_mean_and_standard_error(toy_detectors):
    assert toy_detectors.format_values([1.0, 2.0, 6.0]) == "3.0 ± 1.5"  # sqrt(7) / sqrt(3)
