"""Which repair, at which bit-width? Measured on toy detectors: ``python benchmarks/repair_study.py OUT``.

Prints the tables of docs/quantization.md, of the toy detectors and of an FPN with frozen norms:

1. all pairs of weight and activation quantizers, with norms as trained, re-estimated and matched, nearest rounding;
2. AdaRound, BRECQ and QDrop with the two best pairs of activations and norms for each detector and bit-width, one seed;
   the best of them for each on all seeds;
3. scopes apart, and heads at 8 bits;
4. backbones pretrained with SSQL beside SimSiam's, without repair, and with the best ones of (1) and (2).

"Best" is by AP of the first seed on selection images, which are training images; tables have AP on the test set, which
no choice uses.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from toy_detectors import (
    BITS,
    FLOAT,
    SECONDS,
    SELECTION,
    SIMSIAM,
    SSQL,
    TEST,
    Cell,
    Detector,
    Study,
    format_values,
    get_aps,
    get_losses,
    print_headings,
    print_row,
    run_study,
)

from ssql_det.quant import Bits, Scheme
from ssql_det.quant.scheme import MATCHED, RE_ESTIMATED, TRAINED

C4, FPN, FROZEN = "c4", "fpn", "fpn-frozen"  # detectors; the last has an FPN with frozen norms
KINDS = (C4, FPN, FROZEN)
CONFIG_FILES = {C4: "toy_voc_narrow_c4.yaml", FPN: "toy_coco_narrow_fpn.yaml", FROZEN: "toy_coco_narrow_fpn.yaml"}
FROZEN_NORMS = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "TEST.PRECISE_BN.ENABLED", "False")
WEIGHTS, ACTIVATIONS, NORMS = ("minmax", "centred"), ("minmax", "mse"), (TRAINED, RE_ESTIMATED, MATCHED)
ROUNDINGS = ("adaround", "brecq", "qdrop")
ITERATIONS = 200  # of learned rounding, for each block
HEADS_AT_8 = {"proposal_generator.*": Bits(8, 8), "roi_heads.*": Bits(8, 8)}


class RepairStudy(Study):
    """With the choices that follow from what was measured."""

    def get_detectors(self, kind: str, method: str = SIMSIAM) -> list[Detector]:
        return [
            Detector(
                CONFIG_FILES[kind],
                seed,
                self.run / "detectors" / f"{kind}-{method}-{seed}",
                self.out / f"{kind}-{method}-{seed}",
                self.get_backbone(method, seed),
                FROZEN_NORMS if kind == FROZEN else (),
                chooses=self.is_choosing(method, seed),
            )
            for seed in self.seeds
        ]

    def score(self, kind: str, cell: Cell) -> float:
        """The first seed's AP on the selection images, by which cells are chosen."""
        ap = self.get_detectors(kind)[0].get_ap(cell, SELECTION)
        assert ap is not None
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

    def run_stages(self) -> Iterator[Callable[[], None]]:
        self.train(self.get_detectors(FROZEN))
        self.measure(
            (detector, [FLOAT, *(cell for bits in BITS for cell in self.list_nearest(kind, bits))])
            for kind in KINDS
            for detector in self.get_detectors(kind)
        )
        yield self.print_nearest
        self.measure(
            (self.get_detectors(kind)[0], self.list_learned(kind, bits)) for bits in reversed(BITS) for kind in KINDS
        )
        yield self.print_learned
        self.measure(
            (detector, [self.choose_learned(kind, bits)])
            for bits in reversed(BITS)
            for kind in KINDS
            for detector in self.get_detectors(kind)[1:]
        )
        yield self.print_chosen
        self.measure(
            (detector, [cell for bits in BITS for cell in self.list_parts(kind, bits).values()])
            for kind in (C4, FPN)
            for detector in self.get_detectors(kind)
        )
        yield self.print_parts
        self.measure(
            (detector, [FLOAT, *(cell for bits in BITS for cell in self.list_compared(kind, bits))])
            for kind in (C4, FPN)
            for detector in self.get_detectors(kind, SSQL)
        )
        yield self.print_pretraining

    def list_compared(self, kind: str, bits: Bits) -> tuple[Cell, Cell, Cell]:
        return Cell(bits), self.choose_nearest(kind, bits), self.choose_learned(kind, bits)

    # ---- tables ----------------------------------------------------------------------------------------------------

    def print_nearest(self) -> None:
        for kind in KINDS:
            print(f"\nFP {kind}: {format_values(get_aps(self.get_detectors(kind), FLOAT))}")
        columns = [(kind, bits) for kind in KINDS for bits in BITS]
        print_headings(["weight", "act", "norms", *(f"{kind} {bits}" for kind, bits in columns)])
        for weight, act, norms in itertools.product(WEIGHTS, ACTIVATIONS, NORMS):
            texts = []
            for kind, bits in columns:
                cell = Cell(bits, Scheme(weight=weight, act=act, norms=norms))
                text = format_values(get_losses(self.get_detectors(kind), cell))
                texts.append(f"**{text}**" if text and cell == self.choose_nearest(kind, bits) else text)
            print_row([weight, act, norms, *texts])

    def print_learned(self) -> None:
        """Losses of the first seed, with the better weights of nearest rounding and with each learned rounding."""
        print_headings(["detector", "bits", "act", "norms", "nearest", *ROUNDINGS])
        for kind, bits in itertools.product(KINDS, BITS):
            learned, nearest = self.list_learned(kind, bits), self.list_nearest(kind, bits)
            first, best = self.get_detectors(kind)[:1], self.choose_learned(kind, bits)
            for act, norms in dict.fromkeys(map(get_pair, learned)):
                own = [cell for cell in learned if get_pair(cell) == (act, norms)]
                base = max((each for each in nearest if get_pair(each) == (act, norms)), key=partial(self.score, kind))
                losses = [(cell, format_values(get_losses(first, cell))) for cell in (base, *own)]
                texts = [f"**{text}**" if cell == best else text for cell, text in losses]
                print_row([kind, bits, act, norms, *texts])
        for kind, rounding in itertools.product(KINDS, ROUNDINGS):
            cells = [each for bits in BITS for each in self.list_learned(kind, bits)]
            own = [each for each in cells if each.scheme.weight.startswith(f"{rounding}:")]
            seconds = [float(format_seconds(self.get_detectors(kind)[:1], each)) for each in own]
            print(f"\nCPU s of {rounding}, {kind}: {min(seconds):.0f} to {max(seconds):.0f}")

    def print_chosen(self) -> None:
        print_headings(["detector", "bits", "no repair", "best nearest", "loses", "best learned", "loses", "CPU s"])
        for kind, bits in itertools.product(KINDS, BITS):
            detectors = self.get_detectors(kind)
            plain, nearest, learned = self.list_compared(kind, bits)
            texts = [format_values(get_losses(detectors, cell)) for cell in (plain, nearest, learned)]
            cells = [texts[0], f"`{nearest.scheme}`", texts[1], f"`{learned.scheme}`", texts[2]]
            print_row([kind, bits, *cells, format_seconds(detectors, learned)])

    def print_parts(self) -> None:
        for kind in (C4, FPN):
            print_headings([kind, *self.list_parts(kind, BITS[0])])
            for bits in BITS:
                cells = self.list_parts(kind, bits).values()
                print_row([bits, *(format_values(get_losses(self.get_detectors(kind), cell)) for cell in cells)])

    def print_pretraining(self) -> None:
        print_headings(["detector", "bits", "repair", "SimSiam: AP", "loses", "SSQL: AP", "loses"])
        groups = [(kind, [self.get_detectors(kind, method) for method in (SIMSIAM, SSQL)]) for kind in (C4, FPN)]
        for (kind, pair), bits in itertools.product(groups, (Bits.FP, *BITS)):
            cells = (FLOAT,) if bits == Bits.FP else self.list_compared(kind, bits)
            for name, cell in zip(("none", "nearest", "learned"), cells, strict=False):
                values = [values for each in pair for values in (get_aps(each, cell), get_losses(each, cell))]
                print_row([kind, bits, name, *map(format_values, values)])


def get_pair(cell: Cell) -> tuple[str, str]:
    """The activations and norms of a cell; ``lsq`` starts as ``mse`` and takes its place."""
    scheme = cell.scheme
    return "mse" if scheme.act == "lsq" else scheme.act, scheme.norms


def format_seconds(detectors: Sequence[Detector], cell: Cell) -> str:
    """The mean time of a processor to quantize, after calibration."""
    rows = [each.read_results()[cell.key][TEST] for each in detectors]
    return f"{statistics.fmean(row.metrics[SECONDS] or 0.0 for row in rows):.0f}"


if __name__ == "__main__":
    run_study(RepairStudy, __doc__)
