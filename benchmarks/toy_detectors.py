"""What the studies on toy detectors share: training them, quantizing and evaluating them in many ways, tables.

A study makes the backbones and detectors of ``ssql-det reproduce --preset mini`` (``--run``: a folder that has them),
trains others from these backbones, evaluates cells of each, and prints tables as Markdown. Rows are appended to files;
what is there is not measured again. Each job has one thread.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration, Row, append_row, read_rows
from ssql_det.quant import Bits, Scheme
from ssql_det.quant.scheme import ROUNDING

if TYPE_CHECKING:
    from ssql_det.ptq import RepairData

CONFIGS = Path(__file__).parents[1] / "configs" / "detection"
SELECTION, TEST = "selection", "test"  # what is evaluated on, and the names of files
CALIBRATION = Calibration(images=64, reconstruction_images=128, selection_images=128)
SIMSIAM, SSQL = "simsiam", "ssql"  # pretraining, in the names of folders
BITS = (Bits(4, 4), Bits(3, 3), Bits(2, 4))
SECONDS = "seconds to quantize"  # a metric of the rows, besides the evaluator's
_PROGRAM = (sys.executable, "-m", "ssql_det")


@dataclass(frozen=True)
class Cell:
    """A detector quantized in one way."""

    bits: Bits
    scheme: Scheme = field(default_factory=Scheme)
    scope: str = "all"
    overrides: Mapping[str, Bits] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        return str(self.bits), str(self.scheme), self.scope, str({name: str(b) for name, b in self.overrides.items()})


FLOAT = Cell(Bits.FP)


def get_key(row: Row) -> tuple[str, ...]:
    """The key of the cell that a row belongs to."""
    return row.bits, row.scheme, row.scope, str(dict(row.overrides))


@dataclass(frozen=True)
class Detector:
    """A toy detector, the folder of its training and that of its rows."""

    config: str
    seed: int
    training: Path
    rows: Path
    backbone: Path | None = None  # None: random weights
    keys: tuple[str, ...] = ()  # KEY, VALUE, ... that change the config
    training_keys: tuple[str, ...] = ()  # and of its training alone
    chooses: bool = False  # whether choices are made by it, on selection images
    has_quantization: bool = False  # whether its training leaves one, with which it is evaluated

    @property
    def weights(self) -> Path:
        return self.training / "model_final.pth"

    @property
    def quantization(self) -> Path | None:
        return self.training / "quantization.safetensors" if self.has_quantization else None

    @property
    def datasets(self) -> tuple[str, ...]:
        return (SELECTION, TEST) if self.chooses else (TEST,)

    def read_results(self) -> dict[tuple[str, ...], dict[str, Row]]:
        """The rows of each cell by what it was evaluated on."""
        files = ((name, self.rows / f"{name}.jsonl") for name in (SELECTION, TEST))
        return _read_results(tuple((name, file, file.stat().st_mtime_ns) for name, file in files if file.exists()))

    def get_ap(self, cell: Cell, dataset: str = TEST) -> float | None:
        """AP of boxes; ``None`` if the cell was not measured."""
        row = self.read_results().get(cell.key, {}).get(dataset)
        return None if row is None else row.metrics["bbox/AP"] or 0.0


@cache
def _read_results(files: tuple[tuple[str, Path, int], ...]) -> dict[tuple[str, ...], dict[str, Row]]:
    """With the times at which the files were changed, so that they are read again then."""
    results: dict[tuple[str, ...], dict[str, Row]] = {}
    for name, file, _ in files:
        for row in read_rows(file):
            results.setdefault(get_key(row), {})[name] = row
    return results


def train(detector: Detector) -> None:
    """Train the detector, unless it is trained."""
    if detector.weights.exists():
        return
    weights = ("MODEL.WEIGHTS", str(detector.backbone)) if detector.backbone else ()
    keys = (*weights, "SEED", str(detector.seed), "OUTPUT_DIR", str(detector.training))
    command = (*_PROGRAM, "train-det", "--config-file", str(CONFIGS / detector.config), "--resume")
    subprocess.run([*command, *keys, *detector.keys, *detector.training_keys], check=True)


def measure(detector: Detector, cells: Sequence[Cell]) -> None:
    """Evaluate the cells that have no rows yet; a job of its own process.

    Cells with the same activations and scope share a calibration, and all cells the recorded proposals.
    """
    import torch

    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS, make_config_label
    from ssql_det.detect.detector import load_trained_detector
    from ssql_det.detect.evaluation_data import build_evaluation_loader, select_role_images
    from ssql_det.detect.points import detector_points
    from ssql_det.detect.quantize import make_repair_data
    from ssql_det.detect.quantized_evaluation import (
        DetectorProvenance,
        QuantizationSettings,
        calibrate_detector,
        describe_calibration,
        evaluate_quantized,
        make_row,
        prepare_evaluation,
    )
    from ssql_det.detect.selection_data import registering_selection
    from ssql_det.ptq import quantize_network
    from ssql_det.quant import Quantization

    torch.set_num_threads(1)
    names, results = detector.datasets, detector.read_results()
    missing = [cell for cell in cells if any(name not in results.get(cell.key, ()) for name in names)]
    if not missing:
        return
    keys = ["MODEL.WEIGHTS", str(detector.weights), "SEED", str(detector.seed), *detector.keys]
    cfg = read_config(str(CONFIGS / detector.config), keys, SSQL_DET_DEFAULTS)
    model, checkpoint = load_trained_detector(cfg)
    sha256 = checkpoint.source.sha256 if checkpoint.source else ""
    if any(row.checkpoint_hash != sha256 for rows in results.values() for row in rows.values()):
        raise UserError(f"the rows in {detector.rows} are of other weights than {detector.weights}; choose another OUT")
    provenance = DetectorProvenance(checkpoint.display_name, checkpoint.metadata, checkpoint.architecture.name, sha256)
    images, (dataset,) = select_role_images(cfg, CALIBRATION), cfg.DATASETS.TEST
    loader = build_evaluation_loader(cfg, dataset)
    detector.rows.mkdir(parents=True, exist_ok=True)
    file = detector.rows / "quantization.safetensors"
    calibrated: dict[tuple[str, str], Quantization] = {}

    def calibrate(quantization: Quantization, scope: str) -> None:
        former = calibrated.setdefault((quantization.scheme.act, scope), quantization)
        if former is quantization:
            calibrate_detector(quantization, images.calibration)
        for point in quantization.points:
            quantization[point].observer = former[point].observer

    @cache
    def record(scope: str, learns: bool) -> RepairData:
        return make_repair_data(model, images, scope, [ROUNDING] if learns else [])

    def quantize(cell: Cell, settings: QuantizationSettings) -> None:
        quantize_network(
            model,
            detector_points(model, cell.scope),
            cell.scheme,
            describe_calibration(cfg, settings, images.calibration),
            [cell.bits],
            file,
            calibrate=partial(calibrate, scope=cell.scope),
            make_data=lambda: record(cell.scope, bool(cell.scheme.learned_repairs)),
            overrides=cell.overrides,
        )

    with registering_selection(cfg, images.selection) as (selection, selection_loader):
        for cell in missing:
            settings = QuantizationSettings(cell.scope, CALIBRATION, cell.scheme, cell.overrides)
            file.unlink(missing_ok=True)
            start = time.process_time()
            if detector.quantization is not None and cell.bits != Bits.FP:
                shutil.copyfile(detector.quantization, file)
            elif cell.bits != Bits.FP:
                quantize(cell, settings)
            seconds = time.process_time() - start
            batches = () if detector.quantization else images.calibration
            context = prepare_evaluation(cfg, model, settings, dataset, loader, batches, file)
            overrides = None if cell.bits == Bits.FP else cell.overrides
            contexts = {SELECTION: replace(context, dataset=selection, loader=selection_loader), TEST: context}
            for name in names:
                each = contexts[name]
                metrics, duration = evaluate_quantized(each, cell.bits, overrides)
                label = make_config_label(str(CONFIGS / detector.config), detector.keys)
                result = {**metrics, SECONDS: seconds}, duration
                append_row(detector.rows / f"{name}.jsonl", make_row(each, label, cell.bits, result, provenance))


@dataclass(frozen=True)
class Study:
    """Detectors, and what was measured of them. ``run``: the folder of backbones and detectors to begin with."""

    run: Path
    out: Path
    seeds: Sequence[int]
    jobs: int

    def run_stages(self) -> Iterator[Callable[[], None]]:
        """Train and measure; yield what prints the table of each stage once it is complete."""
        raise NotImplementedError

    def get_backbone(self, method: str, seed: int) -> Path:
        return self.run / "backbones" / f"{method}-{seed}" / "backbone.pkl"

    def is_choosing(self, method: str, seed: int) -> bool:
        """Whether a detector decides what is chosen: the first seed of SimSiam's."""
        return (method, seed) == (SIMSIAM, self.seeds[0])

    def train(self, detectors: Iterable[Detector]) -> None:
        _run_jobs(self.jobs, train, ((each,) for each in detectors))

    def measure(self, cells_by_detector: Iterable[tuple[Detector, Sequence[Cell]]]) -> None:
        _run_jobs(self.jobs, measure, cells_by_detector)


def run_study(study: type[Study], description: str | None) -> None:
    """The command line of a study. Toy data, backbones and detectors are made by ``ssql-det reproduce``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of what is measured")
    parser.add_argument("--run", type=Path, help="folder of ssql-det reproduce --preset mini (default: OUT/run)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args()
    run = options.run or options.out / "run"
    os.environ.update(OMP_NUM_THREADS="1", DETECTRON2_DATASETS=str(run / "data"))
    # The detectors are wanted, and not how they do at other bit-widths.
    settings = ("--seeds", str(options.seeds), "--bits", "FP", "--jobs", str(options.jobs), "--out", str(run))
    reproduce = (*_PROGRAM, "reproduce", "--preset", "mini", "--methods", "SimSiam", "SSQL", *settings)
    subprocess.run(reproduce, check=True)
    for print_table in study(run, options.out, range(options.seeds), options.jobs).run_stages():
        print_table()


def _run_jobs(processes: int, function: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Call the function with each tuple of arguments, in several processes."""
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(function, *each) for each in arguments]
        for number, job in enumerate(jobs, start=1):
            job.result()
            print(f"{function.__name__}: {number} of {len(jobs)} jobs are done", file=sys.stderr, flush=True)


def get_aps(detectors: Sequence[Detector], cell: Cell) -> list[float]:
    """AP of boxes on the test set, for each detector that was measured."""
    return [ap for each in detectors if (ap := each.get_ap(cell)) is not None]


def get_losses(detectors: Sequence[Detector], cell: Cell) -> list[float]:
    """AP of boxes that the cell loses on the test set, for each detector that was measured."""
    pairs = [(each.get_ap(FLOAT), each.get_ap(cell)) for each in detectors]
    return [float_ap - ap for float_ap, ap in pairs if float_ap is not None and ap is not None]


def format_values(values: Sequence[float]) -> str:
    """Mean and standard error."""
    if not values:
        return ""
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{error}"


def print_headings(headings: Sequence[object]) -> None:
    print()
    print_row(headings)
    print("|" + "---|" * len(headings))


def print_row(cells: Sequence[object]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
