"""Search for the bit-width of each group of a detector's modules, under a budget of size, bit-operations or AP.

The loss of each group alone at each bit-width is measured on selection images, and the assignment of least total loss,
or of least cost, is solved for exactly. Losses of groups do not add up, so this assignment is measured as a whole. That
corrects the prediction, and the next best one is solved for. Of the few that are measured, and of the uniform
bit-widths, one is taken. The test set is not looked at.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ssql_det.core.console import track
from ssql_det.core.distributed import broadcast_from_main
from ssql_det.core.errors import UserError
from ssql_det.detect.groups import ModuleGroup, join_overrides
from ssql_det.detect.measurements import AP, Measurer
from ssql_det.ptq.assignment import Assignment, find_best_assignments, find_bounds
from ssql_det.ptq.prediction import NOISE, LossPrediction, fit_factor
from ssql_det.ptq.smoothing import count_bits, smooth_losses
from ssql_det.quant import Bits, CostProfile
from ssql_det.quant.pairwise import PairwiseCost
from ssql_det.quant.scheme import NORM_CORRECTION, RE_ESTIMATED

MB, GBOPS = "MB", "GBOPs"
_UNITS = {MB: 1e6, GBOPS: 1e9}  # bytes, and bit-operations
_TOLERANCE = 1e-9  # of a limit: a budget is a decimal number
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Goal:
    """Lose the least within a budget of ``quantity``; or have the least of it and lose at most ``lose`` AP."""

    quantity: str  # MB or GBOPS
    budget: float | None = None
    lose: float | None = None

    def __str__(self) -> str:
        return f"least {self.quantity}, at most {self.lose:g} AP lost" if self.lose is not None else self._budget_text

    @property
    def _budget_text(self) -> str:
        return f"least AP lost, at most {self.budget:g} {self.quantity}"

    @classmethod
    def parse_budget(cls, text: str) -> Goal:
        """Read ``4 MB`` or ``20 GBOPs``.

        >>> Goal.parse_budget("0.5mb")
        Goal(quantity='MB', budget=0.5, lose=None)
        """
        stripped = text.strip()
        number = stripped.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/ ")
        unit = stripped[len(number) :].strip()
        quantity = next((each for each in _UNITS if each.lower() == unit.lower()), None)
        try:
            budget = float(number)
        except ValueError:
            budget = -1.0
        if quantity is None or not 0 < budget < float("inf"):
            raise UserError(f"--budget must be a number of {MB} or {GBOPS}, such as '4 MB' or '20 GBOPs'; got {text!r}")
        return cls(quantity, budget)


@dataclass(frozen=True)
class Candidate:
    """An assignment of bit-widths to all groups, measured as a whole on the selection images."""

    name: str  # 4w4a for a uniform bit-width, else a number
    assignment: Assignment
    bits: Bits  # uniform, or the most frequent
    overrides: Mapping[str, Bits]  # by pattern of module paths; none for a uniform bit-width
    predicted_loss: float
    ap: float
    mb: float
    gbops: float

    @property
    def is_uniform(self) -> bool:
        return not self.overrides

    def get_cost(self, quantity: str) -> float:
        return self.mb if quantity == MB else self.gbops


class Search:
    """The groups with their choices, losses and costs, and the candidates that are measured."""

    def __init__(
        self,
        measurer: Measurer,
        profile: CostProfile,
        groups: Sequence[ModuleGroup],
        bit_widths: Sequence[Bits],
        quantity: str = AP,  # by which groups are measured
    ) -> None:
        self._measurer, self.groups, self.quantity = measurer, groups, quantity
        self.bit_widths = bit_widths
        self.choices = [group.list_choices(bit_widths) for group in groups]
        members = [[group.assign(bits) for bits in own] for group, own in zip(groups, self.choices, strict=True)]
        inside = {point for group in groups for point in group.points}
        others = {point: point.bits for point in profile.points if point not in inside}
        self._num_bytes, self._bit_ops = profile.split(members, others)
        self._repair_bytes = 0
        self.losses: list[list[float]] = []  # measured, of each group's choices
        self._prediction = LossPrediction([])
        self.candidates: dict[Assignment, Candidate] = {}

    def run(self, goal: Goal, count: int) -> Candidate:
        """Measure the groups and ``count`` assignments as a whole, and return the one to take."""
        if NORM_CORRECTION in self._measurer.scheme.repairs:  # of as many bytes at every bit-width
            self._repair_bytes = self._measurer.measure(AP, self.bit_widths[0]).repair_bytes
        if goal.budget is not None:
            _check_budget(goal, self._get_cost(goal.quantity))
        self._measure_groups()
        self._start_prediction()
        find_next, take = self._find_within_budget, self._take_most_ap
        if goal.lose is not None:
            find_next, take = self._find_within_loss, self._take_least_cost
        for _ in track(range(count), "best assignments"):
            best = broadcast_from_main(partial(find_next, goal))
            if best is None:
                break
            self._measure(best)
        taken = take(goal)
        _logger.info("taken: %s, AP %.2f, %.4g MB, %.4g GBOPs", taken.name, taken.ap, taken.mb, taken.gbops)
        return taken

    @property
    def float_ap(self) -> float:
        """Of the selection images."""
        return self._measurer.measure(AP, Bits.FP).value

    def get_bits(self, candidate: Candidate) -> list[Bits]:
        """The bit-width of each group."""
        return [own[choice] for own, choice in zip(self.choices, candidate.assignment, strict=True)]

    def _get_cost(self, quantity: str) -> PairwiseCost:
        """In the unit of the quantity."""
        whole = self._bit_ops
        if quantity == MB:
            of_weights = self._num_bytes
            whole = PairwiseCost(of_weights.constant + self._repair_bytes, of_weights.singles, of_weights.pairs)
        return whole.scale(1 / _UNITS[quantity])

    def _measure_groups(self) -> None:
        pairs = [(group, bits) for group, own in zip(self.groups, self.choices, strict=True) for bits in own]
        measured = []
        for group, bits in track(pairs, "groups at bit-widths"):
            loss = self._measurer.measure_loss(self.quantity, Bits.FP, group.at(bits))
            _logger.info("%s at %s: %.4f (%s)", group.pattern, bits, loss, self.quantity)
            measured.append(loss)
        remaining = iter(measured)
        self.losses = [[next(remaining) for _ in own] for own in self.choices]

    def _start_prediction(self) -> None:
        """From the groups alone, with a factor that fits the uniform bit-widths, which are measured first.

        Re-estimating norms changes the AP by about the same amount whichever groups are quantized. At the highest
        bit-width quantization itself costs almost nothing, so the loss there is taken as this amount: its median over
        the groups is subtracted from their losses, or else each group would count it, and the loss of the whole network
        at its highest bit-width is added once, as the prediction's constant.
        """
        offset, constant = 0.0, 0.0
        lost = [self._measurer.measure_loss(AP, bits) for bits in self.bit_widths]
        if self._measurer.scheme.norms == RE_ESTIMATED:
            pairs = zip(self.choices, self.losses, strict=True)
            offset = statistics.median(losses[_find_most_bits(own)] for own, losses in pairs)
            constant = lost[_find_most_bits(self.bit_widths)]
        pairs = zip(self.choices, self.losses, strict=True)
        smooth = [smooth_losses(own, [loss - offset for loss in losses]) for own, losses in pairs]
        uniform = [self._find_uniform(bits) for bits in self.bit_widths]
        sums = [PairwiseCost(0, smooth)(assignment) for assignment in uniform]
        factor = fit_factor(sums, [loss - constant for loss in lost])
        self._prediction = LossPrediction([[factor * loss for loss in losses] for losses in smooth], constant)
        for assignment in uniform:
            self._measure(assignment)

    def _find_uniform(self, bits: Bits) -> Assignment:
        """The network at one bit-width: a group with bits of its own keeps them."""
        pairs = zip(self.groups, self.choices, strict=True)
        return tuple(own.index(group.get_uniform_bits(bits)) for group, own in pairs)

    def _measure(self, assignment: Assignment) -> Candidate:
        if assignment in self.candidates:
            return self.candidates[assignment]
        uniform = next((bits for bits in self.bit_widths if self._find_uniform(bits) == assignment), None)
        assigned = [own[choice] for own, choice in zip(self.choices, assignment, strict=True)]
        overrides = {} if uniform else join_overrides(self.groups, assigned)
        bits = uniform or Counter(assigned).most_common(1)[0][0]
        number = sum(not each.is_uniform for each in self.candidates.values()) + 1
        candidate = Candidate(
            str(uniform or number),
            assignment,
            bits,
            overrides,
            self._prediction.cost(assignment),
            self._measurer.measure(AP, bits, overrides).value,
            self._get_cost(MB)(assignment),
            self._get_cost(GBOPS)(assignment),
        )
        text = "%s: AP %.2f of %.2f, %.4g MB, %.4g GBOPs"
        _logger.info(text, candidate.name, candidate.ap, self.float_ap, candidate.mb, candidate.gbops)
        self.candidates[assignment] = candidate
        self._prediction.learn(assignment, self.float_ap - candidate.ap)
        return candidate

    def _find_within_budget(self, goal: Goal) -> Assignment | None:
        """The next assignment to measure: that of least predicted loss."""
        assert goal.budget is not None
        loss, cost, limit = self._prediction.cost, self._get_cost(goal.quantity), goal.budget * (1 + _TOLERANCE)
        return next(iter(find_best_assignments(loss, cost, limit, excluded=self.candidates)), None)

    def _take_most_ap(self, goal: Goal) -> Candidate:
        assert goal.budget is not None
        limit, cost = goal.budget * (1 + _TOLERANCE), self._get_cost(goal.quantity)
        within = [each for each in self.candidates.values() if cost(each.assignment) <= limit]
        return max(within, key=lambda each: (each.ap, -cost(each.assignment)))

    def _find_within_loss(self, goal: Goal) -> Assignment | None:
        """The next assignment to measure, of less cost than all that were measured within the limit: the least that is
        predicted to be within it, else, as predictions err, that of least predicted loss if it is not far above."""
        assert goal.lose is not None
        loss, cost = self._prediction.cost, self._get_cost(goal.quantity)
        least = min((cost(each.assignment) for each in self._list_met(goal.lose)), default=math.inf)
        for assignment in find_best_assignments(cost, loss, goal.lose, excluded=self.candidates):
            if cost(assignment) < least:
                return assignment
        for assignment in find_best_assignments(loss, cost, least * (1 - _TOLERANCE), excluded=self.candidates):
            if math.isinf(least) or loss(assignment) <= goal.lose + 2 * NOISE:
                return assignment
        return None

    def _list_met(self, lose: float) -> list[Candidate]:
        return [each for each in self.candidates.values() if self.float_ap - each.ap <= lose]

    def _take_least_cost(self, goal: Goal) -> Candidate:
        assert goal.lose is not None
        if not self._list_met(goal.lose):
            self._measure(tuple(map(_find_most_bits, self.choices)))
        met, cost = self._list_met(goal.lose), self._get_cost(goal.quantity)
        if not met:
            closest = max(self.candidates.values(), key=lambda each: each.ap)
            raise UserError(
                f"--lose {goal.lose:g}: everything that was measured loses more AP on the selection images, at least "
                f"{self.float_ap - closest.ap:.2f} ({closest.name}, {closest.mb:.4g} MB); allow more, add a greater "
                "bit-width to --widths, or use a better --scheme"
            )
        return min(met, key=lambda each: (cost(each.assignment), -each.ap))


def _find_most_bits(choices: Sequence[Bits]) -> int:
    return max(range(len(choices)), key=lambda index: sum(count_bits(choices[index])))


def _check_budget(goal: Goal, cost: PairwiseCost) -> None:
    assert goal.budget is not None
    least, most = find_bounds(cost)
    if goal.budget * (1 + _TOLERANCE) < least:
        raise UserError(
            f"no bit-widths meet the budget of {goal.budget:g} {goal.quantity}: with these --widths the least possible "
            f"is {least:.6g}, the most {most:.6g}; raise the budget, or add a smaller bit-width"
        )
