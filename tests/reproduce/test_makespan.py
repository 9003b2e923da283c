"""The estimated time of parallel steps, compared with a simulation by the minute and with all orders."""

from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reproduce.plans import make_step

from ssql_det.reproduce.steps import estimate_makespan, find_dependencies


@st.composite
def plans(draw, max_steps=7):
    steps = []
    for number in range(draw(st.integers(1, max_steps))):
        needed = draw(st.sets(st.sampled_from(range(number)), max_size=3)) if number else ()
        reads = [path for each in needed for path in steps[each].outputs]
        steps.append(make_step(f"step{number}", Path(str(number)), reads, minutes=draw(st.integers(1, 5))))
    return steps


def longest_path(steps):
    ends = {}
    for step in steps:  # each behind those that it needs
        ends[step.name] = step.minutes + max((ends[each.name] for each in find_dependencies(step, steps)), default=0)
    return max(ends.values())


def simulate(steps, jobs):
    """Every minute, free jobs start steps that are ready, in the given order."""
    minutes_left, done, now = {step.name: step.minutes for step in steps}, set(), 0
    running = []
    while len(done) < len(steps):
        for step in steps:
            is_ready = all(each.name in done for each in find_dependencies(step, steps))
            if step.name not in done and step.name not in running and is_ready and len(running) < jobs:
                running.append(step.name)
        for name in list(running):
            minutes_left[name] -= 1
            if minutes_left[name] == 0:
                running.remove(name)
                done.add(name)
        now += 1
    return now


@given(plans(), st.integers(1, 8))
def test_it_equals_a_simulation_simulate(steps, jobs):
    assert estimate_makespan(steps, jobs) == simulate(steps, jobs)


@given(plans(), st.integers(1, 8))
def test_it_lies_between_lower_and_upper_bound(steps, jobs):
    total, longest = sum(step.minutes for step in steps), longest_path(steps)
    assert max(total / jobs, longest) <= estimate_makespan(steps, jobs) <= total
    assert estimate_makespan(steps, 1) == total
    assert estimate_makespan(steps, len(steps)) == estimate_makespan(steps, 10**6) == longest


@given(plans(max_steps=5), st.integers(2, 3))
def test_it_is_within_grahams_bound_of_the_best_order(steps, jobs):
    """Graham (1969): if no job idles while a step is ready, the time is less than twice the best."""
    best = min(estimate_makespan(order, jobs) for order in permutations(steps))
    assert best <= estimate_makespan(steps, jobs) <= (2 - 1 / jobs) * best


@pytest.mark.parametrize(("jobs", "minutes"), [(1, 10.0), (2, 6.0), (3, 6.0), (99, 6.0)])
def test_by_hand(jobs, minutes):
    """a (1 minute) before b (2), c (3) and d (2); e (2) after c: the longest path is 6, the total 10."""
    a = make_step("a", Path("a"), minutes=1.0)
    b, c, d = (
        make_step(name, Path(name), a.outputs, minutes=minutes)
        for name, minutes in (("b", 2.0), ("c", 3.0), ("d", 2.0))
    )
    e = make_step("e", Path("e"), c.outputs, minutes=2.0)
    steps = [a, b, c, d, e]
    assert estimate_makespan(steps, jobs) == minutes


def test_no_steps_take_no_time():
    assert estimate_makespan([], 3) == 0


def test_a_step_depends_on_those_that_make_its_inputs():
    a, b = make_step("a", Path("a")), make_step("b", Path("b"))
    both = make_step("c", Path("c"), (*a.outputs, *b.outputs, Path("given.yaml")))
    assert [each.name for each in find_dependencies(both, [b, a, both])] == ["b", "a"]
    assert not list(find_dependencies(a, [a, b, both]))
