"""Steps as parallel jobs of a fake program: order, failures, and the log."""

import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reproduce.plans import FakeProgram, get_states

from ssql_det.reproduce import runner
from ssql_det.reproduce.runner import DONE, FAILED, SKIPPED, get_log_path, make_environment

pytestmark = pytest.mark.slow


def count_parallel(events):
    running = most = 0
    for event, _ in events:
        running += 1 if event == "begin" else -1
        most = max(most, running)
    return most


@pytest.mark.parametrize("jobs", [1, 2, 3, 9])
def test_each_step_starts_after_its_dependencies_and_all_jobs_are_used(jobs, fake):
    a, b, c = (fake.step(name, seconds=1.0) for name in "abc")
    d = fake.step("d", a, b)
    e = fake.step("e", d, c)
    outcomes = fake.run([e, d, c, b, a], jobs)
    assert set(get_states(outcomes).values()) == {DONE}
    order = fake.events
    assert sorted(name for event, name in order if event == "begin") == list("abcde")
    for step, needed in ((d, (a, b)), (e, (d, c))):
        assert all(order.index(("end", each.name)) < order.index(("begin", step.name)) for each in needed)
    assert count_parallel(order) == min(jobs, 3)
    assert all(outcome.seconds > 0 and not outcome.was_cached and not outcome.reason for outcome in outcomes.values())
    assert e.outputs[0].read_text() == "edabc"


def test_each_step_has_its_own_log(fake):
    steps = [fake.step(name, message=f"this is {name}") for name in "abc"]
    fake.run(steps, jobs=3)
    assert [get_log_path(fake.out, step).read_text() for step in steps] == [f"this is {name}\n" for name in "abc"]
    assert len({get_log_path(fake.out, step) for step in steps}) == 3


# ---- what fails ----------------------------------------------------------------------------------------------------


def test_a_failure_stops_only_dependent_steps(fake):
    output = "warming up\nerror: there is no room; make some\nin the end\n"
    a = fake.step("a", exit_code=2, message=output)
    b = fake.step("b", a)
    c = fake.step("c", b)
    d = fake.step("d", seconds=0.1)
    e = fake.step("e", d)
    outcomes = fake.run([a, b, c, d, e])
    assert get_states(outcomes) == {"a": FAILED, "b": SKIPPED, "c": SKIPPED, "d": DONE, "e": DONE}
    assert outcomes["a"].reason == "there is no room; make some"
    assert outcomes["c"].reason == "a step that it needs failed or was skipped"
    assert sorted({name for _, name in fake.events}) == ["a", "d", "e"]
    fake.clear_events()
    again = fake.run([a, b, c, d, e])
    assert get_states(again) == get_states(outcomes)
    assert {name for _, name in fake.events} == {"a"}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("error: one\nerror: two\nmore", "two"),
        ("Traceback:\n  deep\nValueError: seven\n\n", "ValueError: seven"),
        ("", "the step ended with exit code 5 and without output"),
    ],
)
def test_the_reason_is_the_last_error_or_the_last_line(output, reason, fake):
    assert fake.run([fake.step("a", exit_code=5, message=output)])["a"].reason == reason


def test_killed_jobs_and_binary_output_have_a_reason(fake):
    fake.script.write_text(
        "import os, sys\nsys.stdout.buffer.write(bytes([255, 10]))\nsys.stdout.flush()\nos.kill(os.getpid(), 9)"
    )
    assert fake.run([fake.step("a")])["a"].reason == "\ufffd"
    fake.script.write_text("import os\nos.kill(os.getpid(), 9)")
    assert fake.run([fake.step("a")])["a"].reason == "the step ended with exit code -9 and without output"


def test_a_step_without_its_output_has_failed(fake):
    a = fake.step("a", writes=False)
    outcomes = fake.run([a, fake.step("b", a)])
    assert get_states(outcomes) == {"a": FAILED, "b": SKIPPED}
    assert outcomes["a"].reason == f"a ended without an error but did not make {a.outputs[0]}; please report this bug"


def test_an_error_of_the_cache_fails_only_that_step(fake):
    a, b = fake.step("a"), fake.step("b")
    a.folder.mkdir(parents=True)
    assert get_states(fake.run([a, b])) == {"a": FAILED, "b": DONE}
    (fake.out / "steps/b.json").write_text("{")
    outcomes = fake.run([b, fake.step("c", b)])
    assert get_states(outcomes) == {"b": FAILED, "c": SKIPPED}
    assert "is damaged; delete it" in outcomes["b"].reason


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    needs=st.lists(st.sets(st.integers(0, 5), max_size=2), min_size=2, max_size=6),
    jobs=st.integers(1, 3),
    data=st.data(),
)
def test_any_plan_with_one_failing_step(tmp_path_factory, needs, jobs, data):
    fake = FakeProgram(tmp_path_factory.mktemp("plan"))
    failing = data.draw(st.integers(0, len(needs) - 1))
    steps, not_done = [], set()
    for number, needed in enumerate(needs):
        before = {each for each in needed if each < number}
        if number == failing or before & not_done:
            not_done.add(number)
        steps.append(fake.step(str(number), *(steps[each] for each in before), exit_code=3 * (number == failing)))
    outcomes = fake.run(data.draw(st.permutations(steps)), jobs)
    assert {int(name) for name, outcome in outcomes.items() if outcome.state != DONE} == not_done
    assert [name for name, outcome in outcomes.items() if outcome.state == FAILED] == [str(failing)]
    assert count_parallel(fake.events) <= jobs


# ---- around it -----------------------------------------------------------------------------------------------------


@pytest.fixture
def log_lines():
    """The lines that the runner logs."""
    lines, logger = [], logging.getLogger("ssql_det.reproduce")
    handler, level = logging.Handler(), logger.level
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_progress_is_logged(fake, monkeypatch, log_lines):
    monkeypatch.setattr(runner, "_LOG_SECONDS", 0.2)
    a = fake.step("a", minutes=2.0)  # it takes less, so b is expected to take less than 2 minutes too
    fake.run([a, fake.step("b", a, seconds=1.5, minutes=2.0)], jobs=1)
    assert "1 of 2 steps in 0.0 min, about 1 min left; running: b" in log_lines
    assert [line for line in log_lines if "started" in line] == ["a: started", "b: started"]
    fake.run([a])
    assert log_lines[-1] == "a: cached"


def test_jobs_have_one_thread_on_the_cpu_and_the_datasets_folder(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("OF_THE_USER", "kept")
    on_cpu, on_gpu = make_environment(Path("a/data")), make_environment(Path("a/data"), has_gpu=True)
    assert (on_cpu["OMP_NUM_THREADS"], on_gpu["OMP_NUM_THREADS"]) == ("1", "64")
    assert (on_cpu["DETECTRON2_DATASETS"], on_cpu["OF_THE_USER"]) == ("a/data", "kept")
