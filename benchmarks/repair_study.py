"""Which repair, at which bit-width? Measured on toy detectors: ``python benchmarks/repair_study.py OUT``.

Makes the detectors by ``ssql-det reproduce --preset mini`` (or ``--run``, a folder that it made) and an FPN with frozen
norms, then measures them. Prints the tables of docs/quantization.md as Markdown:

1. all pairs of weight and activation quantizers, with norms as trained, re-estimated and matched, nearest rounding;
2. AdaRound, BRECQ and QDrop with the two best pairs of activations and norms for each detector and bit-width, one seed;
   the best of them for each on all seeds;
3. scopes apart, and heads at 8 bits;
4. backbones pretrained with SSQL beside SimSiam's, without repair, and with the best ones of (1) and (2).

"Best" is by AP of the first seed on selection images, which are training images; tables have AP on the test set, which
no choice uses.
Rows are written to OUT; what is there is not measured again. Each job has one thread.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration, Row, append_row, read_rows
from ssql_det.quant import Bits, Scheme
from ssql_det.quant.scheme import MATCHED, RE_ESTIMATED, ROUNDING, TRAINED

if TYPE_CHECKING:
    from ssql_det.ptq import RepairData

CONFIGS = Path(__file__).parents[1] / "configs" / "detection"
C4, FPN, FROZEN = "c4", "fpn", "fpn-frozen"  # detectors; the last has an FPN with frozen norms
SIMSIAM, SSQL = "simsiam", "ssql"  # pretraining
SELECTION, TEST = "selection", "test"  # what is evaluated on, and the names of files
CONFIG_FILES = {C4: "toy_voc_narrow_c4.yaml", FPN: "toy_coco_narrow_fpn.yaml", FROZEN: "toy_coco_narrow_fpn.yaml"}
FROZEN_NORMS = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "TEST.PRECISE_BN.ENABLED", "False")
BITS = (Bits(4, 4), Bits(3, 3), Bits(2, 4))
WEIGHTS, ACTIVATIONS, NORMS = ("minmax", "centred"), ("minmax", "mse"), (TRAINED, RE_ESTIMATED, MATCHED)
ROUNDINGS = ("adaround", "brecq", "qdrop")
ITERATIONS = 200  # of learned rounding, for each block
CALIBRATION = Calibration(images=64, reconstruction_images=128, selection_images=128)
HEADS_AT_8 = {"proposal_generator.*": Bits(8, 8), "roi_heads.*": Bits(8, 8)}
SECONDS = "seconds to quantize"  # a metric of the rows, besides the evaluator's


@dataclass(frozen=True)
class Cell:
    """A detector quantized in one way, to be evaluated on the selection images and on the test set."""

    bits: Bits
    scheme: Scheme = field(default_factory=Scheme)
    scope: str = "all"
    overrides: Mapping[str, Bits] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        return str(self.bits), str(self.scheme), self.scope, str({name: str(b) for name, b in self.overrides.items()})


def get_key(row: Row) -> tuple[str, ...]:
    """The key of the cell that a row belongs to."""
    return row.bits, row.scheme, row.scope, str(dict(row.overrides))


@dataclass(frozen=True)
class Detector:
    """A trained toy detector, and the files of its measurements."""

    kind: str
    method: str
    seed: int
    weights: Path
    folder: Path

    def list_datasets(self) -> tuple[str, ...]:
        """What cells are evaluated on. Only the first seed of SimSiam's detectors decides which ones are the best."""
        return (SELECTION, TEST) if (self.method, self.seed) == (SIMSIAM, 0) else (TEST,)

    def read_results(self) -> dict[tuple[str, ...], dict[str, Row]]:
        """The rows of each cell by what it was evaluated on."""
        results: dict[tuple[str, ...], dict[str, Row]] = {}
        for name in (SELECTION, TEST):
            file = self.folder / f"{name}.jsonl"
            for row in read_rows(file) if file.exists() else ():
                results.setdefault(get_key(row), {})[name] = row
        return results


def measure(detector: Detector, cells: Sequence[Cell]) -> None:
    """Evaluate the cells that have no rows yet; a job of its own process.

    Cells with the same activations and scope share a calibration, and all cells the recorded proposals.
    """
    import torch

    from ssql_det.d2 import read_config
    from ssql_det.detect import SSQL_DET_DEFAULTS
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
    names, results = detector.list_datasets(), detector.read_results()
    missing = [cell for cell in cells if any(name not in results.get(cell.key, ()) for name in names)]
    if not missing:
        return
    changes = FROZEN_NORMS if detector.kind == FROZEN else ()
    keys = ["MODEL.WEIGHTS", str(detector.weights), "SEED", str(detector.seed), *changes]
    cfg = read_config(str(CONFIGS / CONFIG_FILES[detector.kind]), keys, SSQL_DET_DEFAULTS)
    model, checkpoint = load_trained_detector(cfg)
    sha256 = checkpoint.source.sha256 if checkpoint.source else ""
    if any(row.checkpoint_hash != sha256 for rows in results.values() for row in rows.values()):
        raise UserError(
            f"the rows in {detector.folder} are of other weights than {detector.weights}; choose another OUT"
        )
    provenance = DetectorProvenance(checkpoint.display_name, checkpoint.metadata, checkpoint.architecture.name, sha256)
    images, (dataset,) = select_role_images(cfg, CALIBRATION), cfg.DATASETS.TEST
    loader = build_evaluation_loader(cfg, dataset)
    detector.folder.mkdir(parents=True, exist_ok=True)
    file = detector.folder / "quantization.safetensors"
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
            if cell.bits != Bits.FP:
                quantize(cell, settings)
            seconds = time.process_time() - start
            context = prepare_evaluation(cfg, model, settings, dataset, loader, images.calibration, file)
            overrides = None if cell.bits == Bits.FP else cell.overrides
            contexts = {SELECTION: replace(context, dataset=selection, loader=selection_loader), TEST: context}
            for name in names:
                each = contexts[name]
                metrics, duration = evaluate_quantized(each, cell.bits, overrides)
                label = CONFIG_FILES[detector.kind]
                result = {**metrics, SECONDS: seconds}, duration
                append_row(detector.folder / f"{name}.jsonl", make_row(each, label, cell.bits, result, provenance))


class Study:
    """The detectors, what was measured of them, and the choices that follow from it."""

    def __init__(self, run: Path, out: Path, seeds: Sequence[int], jobs: int) -> None:
        self.run, self.out, self.seeds, self.jobs = run, out, seeds, jobs

    def get_detectors(self, kind: str, method: str = SIMSIAM) -> list[Detector]:
        names = [f"{kind}-{method}-{seed}" for seed in self.seeds]
        return [
            Detector(kind, method, seed, self.run / "detectors" / name / "model_final.pth", self.out / name)
            for seed, name in zip(self.seeds, names, strict=True)
        ]

    def measure(self, cells_by_detector: Iterable[tuple[Detector, Sequence[Cell]]]) -> None:
        with ProcessPoolExecutor(self.jobs) as pool:
            jobs = [pool.submit(measure, detector, cells) for detector, cells in cells_by_detector]
            for number, job in enumerate(jobs, start=1):
                job.result()
                print(f"job {number} of {len(jobs)} is done", file=sys.stderr, flush=True)

    def get_aps(self, detectors: Sequence[Detector], cell: Cell, name: str = TEST, task: str = "bbox") -> list[float]:
        rows = [each.read_results().get(cell.key, {}).get(name) for each in detectors]
        return [row.metrics[f"{task}/AP"] or 0.0 for row in rows if row is not None]

    def get_losses(self, detectors: Sequence[Detector], cell: Cell) -> list[float]:
        """AP of boxes that the cell loses on the test set, for each seed that was measured."""
        float_aps, aps = self.get_aps(detectors, Cell(Bits.FP)), self.get_aps(detectors, cell)
        return [float_ap - ap for float_ap, ap in zip(float_aps, aps, strict=False)]

    def score(self, kind: str, cell: Cell) -> float:
        """The first seed's AP on the selection images, by which cells are chosen."""
        (ap,) = self.get_aps(self.get_detectors(kind)[:1], cell, SELECTION)
        return ap

    # ---- cells -----------------------------------------------------------------------------------------------------

    def list_nearest(self, kind: str, bits: Bits) -> list[Cell]:
        norms = [each for each in NORMS if kind != FROZEN or each != RE_ESTIMATED]  # frozen norms keep their statistics
        return [
            Cell(bits, Scheme(weight=weight, act=act, norms=each))
            for weight, act, each in itertools.product(WEIGHTS, ACTIVATIONS, norms)
        ]

    def choose_nearest(self, kind: str, bits: Bits) -> Cell:
        return max(self.list_nearest(kind, bits), key=partial(self.score, kind))

    def list_learned(self, kind: str, bits: Bits) -> list[Cell]:
        """Learned rounding in place of a weight quantizer, with the two best pairs of activations and norms."""
        ranked = sorted(self.list_nearest(kind, bits), key=partial(self.score, kind), reverse=True)
        pairs = list(dict.fromkeys((cell.scheme.act, cell.scheme.norms) for cell in ranked))[:2]
        return [
            Cell(bits, Scheme(weight=f"{rounding}:{ITERATIONS}", act="lsq" if act == "mse" else act, norms=norms))
            for rounding, (act, norms) in itertools.product(ROUNDINGS, pairs)
        ]

    def choose_learned(self, kind: str, bits: Bits) -> Cell:
        return max(self.list_learned(kind, bits), key=partial(self.score, kind))

    def list_parts(self, kind: str, bits: Bits) -> dict[str, Cell]:
        """The best cell with nearest rounding in each scope, and with heads at 8 bits."""
        best = self.choose_nearest(kind, bits)
        scopes = ("backbone", "all") if kind == C4 else ("backbone", "backbone+neck", "all")
        cells = {scope: replace(best, scope=scope) for scope in scopes}
        return {**cells, "all, heads at 8 bits": replace(best, overrides=HEADS_AT_8)}

    # ---- stages ----------------------------------------------------------------------------------------------------

    def run_stages(self) -> Iterator[str]:
        """Measure, and yield the name of each stage that is complete."""
        kinds = (C4, FPN, FROZEN)
        self.measure(
            (detector, [Cell(Bits.FP), *itertools.chain.from_iterable(self.list_nearest(kind, bits) for bits in BITS)])
            for kind in kinds
            for detector in self.get_detectors(kind)
        )
        yield "nearest"
        self.measure(
            (self.get_detectors(kind)[0], self.list_learned(kind, bits)) for bits in reversed(BITS) for kind in kinds
        )
        yield "learned"
        self.measure(
            (detector, [self.choose_learned(kind, bits)])
            for bits in reversed(BITS)
            for kind in kinds
            for detector in self.get_detectors(kind)[1:]
        )
        yield "learned on all seeds"
        self.measure(
            (detector, [*itertools.chain.from_iterable(self.list_parts(kind, bits).values() for bits in BITS)])
            for kind in (C4, FPN)
            for detector in self.get_detectors(kind)
        )
        yield "parts"
        self.measure(
            (detector, [Cell(Bits.FP), *itertools.chain.from_iterable(self.list_compared(kind, bits) for bits in BITS)])
            for kind in (C4, FPN)
            for detector in self.get_detectors(kind, SSQL)
        )
        yield "pretraining"

    def list_compared(self, kind: str, bits: Bits) -> tuple[Cell, Cell, Cell]:
        return Cell(bits), self.choose_nearest(kind, bits), self.choose_learned(kind, bits)

    # ---- tables ----------------------------------------------------------------------------------------------------

    def print_tables(self, stage: str) -> None:
        {
            "nearest": self.print_nearest,
            "learned": self.print_learned,
            "learned on all seeds": self.print_chosen,
            "parts": self.print_parts,
            "pretraining": self.print_pretraining,
        }[stage]()

    def print_nearest(self) -> None:
        for kind in (C4, FPN, FROZEN):
            detectors = self.get_detectors(kind)
            print(f"\nFP {kind}: {format_values(self.get_aps(detectors, Cell(Bits.FP)))}")
        columns = [(kind, bits) for kind in (C4, FPN, FROZEN) for bits in BITS]
        print_table(["weight", "act", "norms", *(f"{kind} {bits}" for kind, bits in columns)])
        for weight, act, norms in itertools.product(WEIGHTS, ACTIVATIONS, NORMS):
            cells = []
            for kind, bits in columns:
                cell = Cell(bits, Scheme(weight=weight, act=act, norms=norms))
                values = self.get_losses(self.get_detectors(kind), cell)
                text = format_values(values)
                cells.append(f"**{text}**" if values and cell == self.choose_nearest(kind, bits) else text)
            print_row([weight, act, norms, *cells])

    def print_learned(self) -> None:
        print_table(["detector", "bits", "weight", "act", "norms", "loses", "selection AP", "CPU s"])
        for kind, bits in itertools.product((C4, FPN, FROZEN), BITS):
            first = self.get_detectors(kind)[:1]
            for cell in self.list_learned(kind, bits):
                scheme, (row,) = cell.scheme, [each.read_results()[cell.key][TEST] for each in first]
                loss, ap = self.get_losses(first, cell), self.get_aps(first, cell, SELECTION)
                cost = f"{row.metrics[SECONDS] or 0.0:.0f}"
                print_row(
                    [kind, bits, scheme.weight, scheme.act, scheme.norms, format_values(loss), format_values(ap), cost]
                )

    def print_chosen(self) -> None:
        print_table(["detector", "bits", "no repair", "best nearest", "loses", "best learned", "loses", "CPU s"])
        for kind, bits in itertools.product((C4, FPN, FROZEN), BITS):
            detectors = self.get_detectors(kind)
            plain, nearest, learned = self.list_compared(kind, bits)
            texts = [format_values(self.get_losses(detectors, cell)) for cell in (plain, nearest, learned)]
            seconds = [each.read_results()[learned.key][TEST].metrics[SECONDS] or 0.0 for each in detectors]
            cells = [texts[0], f"`{nearest.scheme}`", texts[1], f"`{learned.scheme}`", texts[2]]
            print_row([kind, bits, *cells, f"{statistics.fmean(seconds):.0f}"])

    def print_parts(self) -> None:
        for kind in (C4, FPN):
            names = list(self.list_parts(kind, BITS[0]))
            print_table([kind, *names])
            for bits in BITS:
                cells = self.list_parts(kind, bits).values()
                print_row([bits, *(format_values(self.get_losses(self.get_detectors(kind), cell)) for cell in cells)])

    def print_pretraining(self) -> None:
        print_table(["detector", "bits", "repair", "SimSiam: AP", "loses", "SSQL: AP", "loses"])
        for kind in (C4, FPN):
            for bits in (Bits.FP, *BITS):
                named = [("none", Cell(bits))]
                if bits != Bits.FP:
                    named += [*zip(("nearest", "learned"), self.list_compared(kind, bits)[1:], strict=True)]
                for name, cell in named:
                    groups = [self.get_detectors(kind, method) for method in (SIMSIAM, SSQL)]
                    texts = [(self.get_aps(each, cell), self.get_losses(each, cell)) for each in groups]
                    print_row([kind, bits, name, *(format_values(values) for pair in texts for values in pair)])


def format_values(values: Sequence[float]) -> str:
    """Mean and standard error."""
    if not values:
        return ""
    error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{error}"


def print_table(headings: Sequence[object]) -> None:
    print()
    print_row(headings)
    print("|" + "---|" * len(headings))


def print_row(cells: Sequence[object]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def make_detectors(run: Path, seeds: Sequence[int], jobs: int) -> None:
    """Pretrain and train whatever of the detectors is missing."""
    command = [sys.executable, "-m", "ssql_det"]
    reproduce = ("reproduce", "--preset", "mini", "--methods", "SimSiam", "SSQL", "--seeds", str(len(seeds)))
    subprocess.run([*command, *reproduce, "--jobs", str(jobs), "--out", str(run)], check=True)
    for seed in seeds:
        folder = run / "detectors" / f"{FROZEN}-{SIMSIAM}-{seed}"
        keys = ("MODEL.WEIGHTS", str(run / "backbones" / f"{SIMSIAM}-{seed}" / "backbone.pkl"), "SEED", str(seed))
        train = ("train-det", "--config-file", str(CONFIGS / CONFIG_FILES[FROZEN]), "--resume", *keys, *FROZEN_NORMS)
        subprocess.run([*command, *train, "OUTPUT_DIR", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the rows")
    parser.add_argument("--run", type=Path, help="folder of the detectors (default: OUT/run)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args()
    run, seeds = options.run or options.out / "run", range(options.seeds)
    os.environ.update(OMP_NUM_THREADS="1", DETECTRON2_DATASETS=str(run / "data"))
    make_detectors(run, seeds, options.jobs)
    study = Study(run, options.out, seeds, options.jobs)
    for stage in study.run_stages():
        study.print_tables(stage)


if __name__ == "__main__":
    main()
