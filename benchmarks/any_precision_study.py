"""Does training at few bits help a detector? On toy detectors: ``python benchmarks/any_precision_study.py OUT``.

Trains detectors in the ways of ``TRAININGS`` and evaluates each at the same bit-widths, with norms as trained,
re-estimated and matched. Prints the tables of docs/detection.md: AP of boxes on the test set, mean and standard error.
Float training and the best other one, by the first seed's AP on selection images, are repeated with SSQL's backbones
and from random weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from toy_detectors import (
    BITS,
    FLOAT,
    SELECTION,
    SIMSIAM,
    SSQL,
    Cell,
    Detector,
    Study,
    format_values,
    get_aps,
    print_headings,
    print_row,
    run_study,
)

from ssql_det.quant import Bits, Scheme
from ssql_det.quant.scheme import MATCHED, RE_ESTIMATED, SWITCHABLE, TRAINED

CONFIGS = {"C4": "toy_voc_narrow_c4.yaml", "FPN": "toy_coco_narrow_fpn.yaml"}
RANDOM = "random"  # a backbone that is not pretrained
NORMS = (TRAINED, RE_ESTIMATED, MATCHED)
_NODE = "SSQL_DET.QUANTIZED_TRAINING"
_ENABLED = (f"{_NODE}.ENABLED", "True")


@dataclass(frozen=True)
class Training:
    """A way to train, and how what comes out of it is quantized. ``bits``: those that it was trained for."""

    name: str
    keys: tuple[str, ...] = ()
    schemes: tuple[Scheme, ...] = tuple(Scheme(norms=norms) for norms in NORMS)
    bits: tuple[Bits, ...] = BITS
    has_quantization: bool = False
    kinds: tuple[str, ...] = field(default=tuple(CONFIGS))

    @property
    def cells(self) -> list[Cell]:
        return [FLOAT, *(Cell(bits, scheme) for bits in self.bits for scheme in self.schemes)]


def make_lsq(bits: Bits) -> Training:
    """Learned steps of weights and activations, at one bit-width."""
    scheme = Scheme(weight="lsq", act="lsq")
    keys = (*_ENABLED, f"{_NODE}.SCHEME", str(scheme), f"{_NODE}.FIXED_BITS", str(bits))
    return Training(f"LSQ at {bits}", keys, (scheme,), (bits,), has_quantization=True)


FLOAT_TRAINING = Training("float")
TRAININGS = (
    FLOAT_TRAINING,
    Training("float, 2.2 times the iterations", ("SOLVER.MAX_ITER", "1320")),
    Training("any-precision", _ENABLED),
    Training(
        "any-precision, switchable norms",
        (*_ENABLED, f"{_NODE}.NORMS", SWITCHABLE),
        (Scheme(norms=SWITCHABLE),),
        has_quantization=True,
    ),
    Training("any-precision, distillation", (*_ENABLED, f"{_NODE}.DISTILLATION", "1.0"), kinds=("FPN",)),
    make_lsq(Bits(4, 4)),
    make_lsq(Bits(2, 4)),
)


class AnyPrecisionStudy(Study):
    def get_detectors(self, kind: str, training: Training, method: str = SIMSIAM) -> list[Detector]:
        """One for each seed. Float training is that of the run."""
        name = training.name.replace(", ", "-").replace(" ", "-")
        detectors = []
        for seed in self.seeds:
            folder = f"{kind.lower()}-{method}-{seed}"
            is_of_run = training is FLOAT_TRAINING and method != RANDOM
            detectors.append(
                Detector(
                    CONFIGS[kind],
                    seed,
                    self.run / "detectors" / folder if is_of_run else self.out / "detectors" / f"{folder}-{name}",
                    self.out / "rows" / f"{folder}-{name}",
                    None if method == RANDOM else self.get_backbone(method, seed),
                    training_keys=training.keys,
                    chooses=self.is_choosing(method, seed),
                    has_quantization=training.has_quantization,
                )
            )
        return detectors

    def run_stages(self) -> Iterator[Callable[[], None]]:
        for kind in CONFIGS:
            self.train_and_measure([(kind, training, SIMSIAM) for training in TRAININGS if kind in training.kinds])
        yield self.print_trainings
        self.train_and_measure(
            [
                (kind, training, method)
                for kind in CONFIGS
                for training in (FLOAT_TRAINING, self.choose_training(kind))
                for method in (SSQL, RANDOM)
            ]
        )
        yield self.print_backbones

    def train_and_measure(self, trainings: Sequence[tuple[str, Training, str]]) -> None:
        pairs = [
            (each, training.cells)
            for kind, training, method in trainings
            for each in self.get_detectors(kind, training, method)
        ]
        self.train(detector for detector, _ in pairs)
        self.measure(pairs)

    def choose_scheme(self, kind: str, training: Training, bits: Bits) -> Cell:
        """By the first seed's AP on the selection images."""
        first = self.get_detectors(kind, training)[0]
        return max(
            (Cell(bits, scheme) for scheme in training.schemes), key=lambda cell: first.get_ap(cell, SELECTION) or 0
        )

    def choose_training(self, kind: str) -> Training:
        """Of those for all bit-widths, other than float training alone."""

        def score(training: Training) -> float:
            first = self.get_detectors(kind, training)[0]
            cells = [self.choose_scheme(kind, training, bits) for bits in BITS]
            return statistics.fmean(first.get_ap(cell, SELECTION) or 0 for cell in cells)

        return max((each for each in TRAININGS[2:] if kind in each.kinds and each.bits == BITS), key=score)

    def print_trainings(self) -> None:
        for kind in CONFIGS:
            print_headings([f"{kind}, trained", "norms", "FP", *BITS])
            for training in (each for each in TRAININGS if kind in each.kinds):
                detectors = self.get_detectors(kind, training)
                for scheme in training.schemes:
                    texts = []
                    for bits in BITS:
                        cell = Cell(bits, scheme)
                        text = format_values(get_aps(detectors, cell))
                        is_best = text and cell == self.choose_scheme(kind, training, bits)
                        texts.append(f"**{text}**" if is_best else text)
                    print_row([training.name, scheme.norms, format_values(get_aps(detectors, FLOAT)), *texts])

    def print_backbones(self) -> None:
        print_headings(["detector", "trained", "backbone", "FP", *BITS])
        for kind in CONFIGS:
            for training in (FLOAT_TRAINING, self.choose_training(kind)):
                for method in (SIMSIAM, SSQL, RANDOM):
                    detectors = self.get_detectors(kind, training, method)
                    cells = [FLOAT, *(self.choose_scheme(kind, training, bits) for bits in BITS)]
                    print_row(
                        [kind, training.name, method, *(format_values(get_aps(detectors, cell)) for cell in cells)]
                    )


if __name__ == "__main__":
    run_study(AnyPrecisionStudy, __doc__)
