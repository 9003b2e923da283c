"""A plan with what became of it: what tables, report and terminal are made from."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ssql_det.core.rows import Row
from ssql_det.report.reading import read_rows
from ssql_det.report.tables import Comparison, compare
from ssql_det.reproduce.parts import Part
from ssql_det.reproduce.plan import Plan
from ssql_det.reproduce.runner import DONE, Outcome
from ssql_det.reproduce.step import Step


@dataclass(frozen=True)
class Reproduction:
    """``command`` is what was typed, ``minutes`` what it took this time."""

    plan: Plan
    outcomes: Mapping[str, Outcome]
    command: str
    minutes: float

    @functools.cached_property
    def rows(self) -> Mapping[str, list[Row]]:
        """Of the steps that are done, by the name of the part that they are of."""
        made = {step.name: step.makes[0] for kind in ("sweep", "probe") for step in self.done(kind)}
        names = self.plan.rows_of
        return {
            part.name: read_rows(made[name] for name in names[part.name] if name in made) for part in self.plan.parts
        }

    @functools.cached_property
    def tables(self) -> Mapping[int, Comparison]:
        """By number, those that were asked for."""
        parts_of = {number: self.parts_of(number) for number in dict.fromkeys(part.table for part in self.plan.parts)}
        return {
            number: compare(number, [row for part in parts for row in self.rows[part.name]], dataset=parts[0].dataset)
            for number, parts in parts_of.items()
        }

    def parts_of(self, number: int) -> list[Part]:
        """What fills a table: one part, or one for each of its networks."""
        return [part for part in self.plan.parts if part.table == number]

    def done(self, kind: str) -> Iterator[Step]:
        for step in self.plan.steps:
            if step.kind == kind and step.name in self.outcomes and self.outcomes[step.name].state == DONE:
                yield step


def minutes_by_kind(of: Reproduction) -> tuple[tuple[str, str, str], ...]:
    kinds = dict.fromkeys(step.kind for step in of.plan.steps)
    seconds = {kind: [of.outcomes[step.name].seconds for step in of.done(kind)] for kind in kinds}
    seconds["all"] = [each for of_kind in seconds.values() for each in of_kind]
    return tuple((kind, str(len(each)), f"{sum(each) / 60:.1f}") for kind, each in seconds.items())


def by_hand(plan: Plan) -> str:
    """The plan as lines for a shell."""
    head = f"export DETECTRON2_DATASETS={shlex.quote(str(plan.data))}"
    one_thread = "" if plan.choices.on_gpu else " OMP_NUM_THREADS=1"  # as here: so that sums are rounded alike
    return "\n".join([head + one_thread, *(step.command for step in plan.steps)])
