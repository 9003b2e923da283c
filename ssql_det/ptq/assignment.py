"""The best assignments of choices to groups, such as bit-widths to parts of a network, under a limit: solved exactly.

Minimize one cost, such as the loss of AP, among the assignments whose other cost, such as the size, is within a limit;
either cost may depend on the choices of two groups together. This is an integer linear program: ``x[g, c]`` is 1 if
group ``g`` has choice ``c``, and for two groups ``y[g, h, c, d]`` is the product of two of these, which

    ``sum_d y[g, h, c, d] = x[g, c]``, ``sum_c y[g, h, c, d] = x[h, d]``, ``y >= 0``

says without products. The next best assignments are found by excluding each one that was found before (no-good cuts).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from ssql_det.quant.pairwise import PairwiseCost

Assignment = tuple[int, ...]  # the index of a choice for each group
Vector = NDArray[np.float64]

_INFEASIBLE = 2  # milp's status


def find_best_assignments(
    minimized: PairwiseCost,
    limited: PairwiseCost,
    limit: float = math.inf,
    count: int = 1,
    excluded: Iterable[Assignment] = (),
) -> list[Assignment]:
    """The ``count`` assignments of least ``minimized`` whose ``limited`` is at most ``limit``, the best first.

    Of equal ones that of less ``limited`` comes first. There are fewer if no more are within the limit, or all others
    are ``excluded``.

    >>> loss = PairwiseCost(0, [[0, 3], [0, 1]])  # two groups at 8 or at 4 bits
    >>> size = PairwiseCost(0, [[8, 4], [16, 8]])
    >>> find_best_assignments(loss, size, limit=16, count=2), find_best_assignments(size, loss, limit=3)
    ([(0, 1), (1, 1)], [(0, 1)])
    """
    program = _Program(minimized, limited)
    for assignment in excluded:
        program.exclude(assignment)
    found: list[Assignment] = []
    while len(found) < count:
        best = program.solve(minimized, limited, limit)
        if best is None:
            break
        # Of those that are as good, one of the least limited cost.
        other = program.solve(limited, minimized, minimized(best))
        if other is not None and (minimized(other), limited(other)) <= (minimized(best), limited(best)):
            best = other
        found.append(best)
        program.exclude(best)
    return found


def find_bounds(cost: PairwiseCost) -> tuple[float, float]:
    """The least and the greatest cost that any assignment has.

    >>> find_bounds(PairwiseCost(1, [[8, 4], [16, 8]]))
    (13.0, 25.0)
    """
    ends = []
    for sign in (1, -1):
        best = _Program(cost).solve(cost.scale(sign))
        assert best is not None  # there is no limit
        ends.append(cost(best))
    return ends[0], ends[1]


class _Program:
    """The variables ``x`` and ``y``, what ties them together, and the assignments that are excluded."""

    def __init__(self, *costs: PairwiseCost) -> None:
        self._sizes = [len(choices) for choices in costs[0].singles]
        self._starts = [0, *itertools.accumulate(self._sizes)]  # of each group's x
        self._pair_starts: dict[tuple[int, int], int] = {}
        self._num_variables = self._starts[-1]
        for first, second in dict.fromkeys(key for cost in costs for key in cost.pairs):
            self._pair_starts[first, second] = self._num_variables
            self._num_variables += self._sizes[first] * self._sizes[second]
        self._ties = LinearConstraint(*self._make_ties())
        self._cuts: list[LinearConstraint] = []

    def _make_ties(self) -> tuple[NDArray[np.float64], Vector, Vector]:
        rows, sums = [], []
        for start, size in zip(self._starts, self._sizes, strict=False):
            row = np.zeros(self._num_variables)
            row[start : start + size] = 1
            rows.append(row)
            sums.append(1.0)
        for groups, start in self._pair_starts.items():
            shape = [self._sizes[group] for group in groups]
            products = start + np.arange(math.prod(shape)).reshape(shape)
            for group, summed in zip(groups, (products, products.T), strict=True):
                for choice, members in enumerate(summed):
                    row = np.zeros(self._num_variables)
                    row[members] = 1
                    row[self._starts[group] + choice] = -1
                    rows.append(row)
                    sums.append(0.0)
        return np.array(rows), np.array(sums), np.array(sums)

    def solve(
        self, minimized: PairwiseCost, limited: PairwiseCost | None = None, limit: float = math.inf
    ) -> Assignment | None:
        """The best assignment that is not excluded; ``None`` if none is within the limit."""
        limits = []
        if limited is not None and math.isfinite(limit):
            coefficients, constant, scale = self._make_coefficients(limited)
            limits = [LinearConstraint(coefficients, ub=(limit - constant) / scale)]
        objective, _, _ = self._make_coefficients(minimized)
        is_integer = np.arange(self._num_variables) < self._starts[-1]
        while True:
            result = milp(
                objective,
                integrality=is_integer.astype(float),
                bounds=Bounds(0, 1),
                constraints=[self._ties, *limits, *self._cuts],
                options={"mip_rel_gap": 0.0},
            )
            if result.status == _INFEASIBLE:
                return None
            if result.x is None:
                raise RuntimeError(f"the integer linear program was not solved: {result.message}")
            best = self._read_assignment(result.x)
            if limited is None or limited(best) <= limit:
                return best
            self.exclude(best)  # it is over the limit by less than the solver's tolerance

    def exclude(self, assignment: Sequence[int]) -> None:
        """Exclude one assignment from all later solutions."""
        row = np.zeros(self._num_variables)
        row[[start + choice for start, choice in zip(self._starts, assignment, strict=False)]] = 1
        self._cuts.append(LinearConstraint(row, ub=len(assignment) - 1))

    def _make_coefficients(self, cost: PairwiseCost) -> tuple[Vector, float, float]:
        """The coefficients of the variables, 0 to 1, a constant and a factor: ``cost = constant + factor * sum``.

        The least coefficient of a group or of a pair of groups is 0, as the solver's tolerances are absolute.
        """
        coefficients, constant = np.zeros(self._num_variables), cost.constant
        parts = [(start, np.array(costs)) for start, costs in zip(self._starts, cost.singles, strict=False)]
        parts += [(self._pair_starts[groups], np.array(table)) for groups, table in cost.pairs.items()]
        for start, table in parts:
            values = table.astype(float).ravel()
            coefficients[start : start + len(values)] = values - values.min()
            constant += values.min()
        scale = coefficients.max() or 1.0
        return coefficients / scale, constant, scale

    def _read_assignment(self, solution: Vector) -> Assignment:
        parts = zip(self._starts, self._sizes, strict=False)
        return tuple(int(solution[start : start + size].argmax()) for start, size in parts)
