"""A cost of assigning one of several choices to each of several groups, such as bit-widths to parts of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Table = Sequence[Sequence[float]]  # by the choice of one group, then by that of another one


@dataclass(frozen=True)
class PairwiseCost:
    """A constant, a cost of each group's choice, and a cost of the choices of two groups together.

    ``singles[g][c]`` is the cost of choice ``c`` in group ``g``, ``pairs[g, h][c][d]`` that of ``c`` in ``g`` and ``d``
    in ``h``, with ``g < h``.

    >>> cost = PairwiseCost(1, [[10, 20], [0, 5]], {(0, 1): [[0, 100], [200, 300]]})
    >>> cost([1, 0]), cost([0, 1])
    (221.0, 116.0)
    """

    constant: float
    singles: Table
    pairs: Mapping[tuple[int, int], Table] = field(default_factory=dict)

    def __call__(self, assignment: Sequence[int]) -> float:
        """The cost of an assignment, the index of a choice for each group."""
        singles = [costs[choice] for costs, choice in zip(self.singles, assignment, strict=True)]
        pairs = [table[assignment[first]][assignment[second]] for (first, second), table in self.pairs.items()]
        return math.fsum([self.constant, *singles, *pairs])  # in any order, so that a limit is exact

    def scale(self, factor: float) -> PairwiseCost:
        """The cost in another unit."""
        singles = [[factor * cost for cost in costs] for costs in self.singles]
        pairs = {key: [[factor * cost for cost in row] for row in table] for key, table in self.pairs.items()}
        return PairwiseCost(factor * self.constant, singles, pairs)
