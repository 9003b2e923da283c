"""What a reader came for: what each method reaches at full precision, and what each seed loses of it at few bits."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from ssql_det.core.rows import Row, finite_or_none
from ssql_det.report.comparison import tenths
from ssql_det.report.document import Block, Heading, Table, Text
from ssql_det.report.names import plain_name
from ssql_det.report.producing import kind_of
from ssql_det.report.published import published_table
from ssql_det.report.texts import unmarked
from ssql_det.reproduce.parts import Part
from ssql_det.reproduce.reproduction import Reproduction

_KINDS = {"bbox/AP": "detector", "linear/top1": "probe"}
_FEW = ("8w8a", "4w4a", "2w4a")


def answer(of: Reproduction) -> Iterator[Block]:
    """A table of detectors and one of probes. What two of the published tables ask for stands once.

    >>> blocks = tuple(answer(Reproduction(plan, outcomes, "ssql-det reproduce", minutes=8.9)))
    """
    yield Heading("What does it cost at few bits?")
    nothing = True
    for metric, kind in _KINDS.items():
        parts = [part for part in of.plan.parts if part.metric == metric]
        rows = tuple(dict.fromkeys(row for part in parts for row in _losses(part, of.rows[part.name])))
        if rows:
            nothing = False
            yield Table((kind, "method", f"{parts[0].figure} at FP", *(f"lost at {bits}" for bits in _FEW)), rows, 2)
    if nothing:
        yield Text("Nothing was measured at FP, so what is lost cannot be told.")


def place(part: Part, method: str) -> int:
    """The same in tables that print different methods: so a method has one colour."""
    known, plain = [plain_name(name) for name in part.methods], plain_name(method)
    return known.index(plain) if plain in known else len(known)


def _losses(part: Part, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    figures = {
        (_name(part, row), row.seed, row.bits): figure
        for row in rows
        if row.dataset == part.dataset and (figure := finite_or_none(row.metrics.get(part.metric))) is not None
    }
    for method in sorted({name for name, _, _ in figures}, key=lambda name: (place(part, name), name)):
        of_bits = {
            width: {seed: figures[name, seed, bits] for name, seed, bits in figures if (name, bits) == (method, width)}
            for width in ("FP", *_FEW)
        }
        whole = of_bits["FP"]
        losses = [[whole[seed] - left for seed, left in of_bits[bits].items() if seed in whole] for bits in _FEW]
        if whole:
            yield (part.title, unmarked(method), *map(spread, ([*whole.values()], *losses)))


def _name(part: Part, row: Row) -> str:
    """As its table prints it."""
    return plain_name(kind_of(part.table).group(row, published_table(part.table)).method)


def spread(values: Sequence[float]) -> str:
    """The mean, and the deviation of several.

    >>> spread([93.1, 92.1])
    '92.6 ± 0.7'
    """
    if not values:
        return "-"
    mean = f"{tenths(statistics.fmean(values)):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean
