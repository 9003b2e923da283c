"""The best assignments equal those of trying all of them."""

import itertools
import math
import random

import pytest

from ssql_det.ptq.assignment import find_best_assignments, find_bounds
from ssql_det.quant.pairwise import PairwiseCost


def make_cost(generator, sizes, pairs, draw):
    singles = [[draw() for _ in range(size)] for size in sizes]
    tables = {(g, h): [[draw() for _ in range(sizes[h])] for _ in range(sizes[g])] for g, h in pairs}
    return PairwiseCost(draw(), singles, tables)


def sum_up(cost, assignment):
    """The cost written out, independently of ``PairwiseCost``."""
    terms = [cost.constant]
    for group, choice in enumerate(assignment):
        terms.append(cost.singles[group][choice])
    for (g, h), table in cost.pairs.items():
        terms.append(table[assignment[g]][assignment[h]])
    return math.fsum(terms)


def rank_all(minimized, limited, limit):
    """All assignments within the limit as (minimized, limited, assignment), the best first."""
    every = itertools.product(*(range(len(costs)) for costs in minimized.singles))
    within = ((sum_up(minimized, each), sum_up(limited, each), each) for each in every)
    return sorted(each for each in within if each[1] <= limit)


def make_case(seed):
    """Two costs and a limit: few whole numbers, so that there are ties, or numbers of the size of losses and bytes."""
    generator = random.Random(seed)
    sizes = [generator.randint(1, 4) for _ in range(generator.randint(1, 5))]
    every_pair = list(itertools.combinations(range(len(sizes)), 2))
    pairs = generator.sample(every_pair, generator.randint(0, min(len(every_pair), 4)))
    draws = [lambda: generator.randint(0, 3), lambda: generator.randint(0, 3)]
    if seed % 2:
        draws = [lambda: generator.gauss(0.5, 1), lambda: generator.randint(10_000, 9_000_000)]
    minimized = make_cost(generator, sizes, [], draws[0])
    limited = make_cost(generator, sizes, pairs, draws[1])
    every = sorted(each[1] for each in rank_all(minimized, limited, float("inf")))
    return minimized, limited, generator.choice([every[0] - 1, *every])


@pytest.mark.parametrize("seed", range(200))
def test_the_best_assignments_are_those_of_trying_all(seed):
    """In both directions: the loss within a size, and the size within a loss."""
    loss, size, limit = make_case(seed)
    limit_of_loss = sorted(each[0] for each in rank_all(loss, size, float("inf")))[seed % 3 :][:1]
    directions = [(loss, size, limit), *((size, loss, each) for each in limit_of_loss)]
    for minimized, limited, at_most in directions:
        expected = rank_all(minimized, limited, at_most)
        found = find_best_assignments(minimized, limited, at_most, count=4)
        assert len(found) == len({*found}) == min(4, len(expected))
        for assignment, (value, other, _) in zip(found, expected, strict=False):
            assert sum_up(limited, assignment) <= at_most
            assert sum_up(minimized, assignment) == pytest.approx(value, rel=1e-9, abs=1e-9)
            if not seed % 2:  # whole numbers: ties are exact, and broken by the other cost
                assert sum_up(limited, assignment) == other


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_the_bounds_are_the_ends_of_all_assignments(seed):
    _, size, _ = make_case(seed)
    every = [sum_up(size, each) for each in itertools.product(*(range(len(costs)) for costs in size.singles))]
    assert find_bounds(size) == (min(every), max(every))


def test_a_limit_holds_exactly():
    """By less than any tolerance of the solver: one byte in a hundred million, and half a millionth of AP."""
    loss = PairwiseCost(0, [[0.0, 1.0], [0.0, 2.0]])
    size = PairwiseCost(0, [[100_000_001, 50_000_000], [100_000_000, 50_000_000]])
    assert find_best_assignments(loss, size, limit=200_000_000) == [(1, 0)]
    assert find_best_assignments(loss, size, limit=200_000_001) == [(0, 0)]
    assert find_best_assignments(size, loss, limit=1.0 - 5e-7) == [(0, 0)]
    assert find_best_assignments(size, loss, limit=3.0) == [(1, 1)]
