"""Plans that run a second time: finished steps are cached, changed ones and their dependents run again."""

import pytest
from support.reproduce.plans import get_states

pytestmark = pytest.mark.slow


def test_finished_steps_are_cached(fake):
    a = fake.step("a")
    steps = [a, fake.step("b", a), fake.step("c")]
    first = fake.run(steps)
    assert len(fake.events) == 6
    fake.clear_events()
    second = fake.run(steps)
    assert not fake.events
    assert get_states(second) == get_states(first)
    assert all(outcome.was_cached for outcome in second.values())
    assert {name: round(outcome.seconds, 1) for name, outcome in first.items()} == {
        name: outcome.seconds for name, outcome in second.items()
    }


def test_a_changed_input_reruns_the_step_and_all_that_depend_on_it(fake, tmp_path):
    input_file = tmp_path / "input.bin"
    input_file.write_text("1")
    a = fake.step("a", inputs=[input_file])
    b = fake.step("b", a)
    steps = [a, b, fake.step("c", b), fake.step("d")]
    fake.run(steps)
    (b.folder / "old").touch()
    input_file.write_text("2")
    fake.clear_events()
    outcomes = fake.run(steps)
    assert [name for event, name in fake.events if event == "begin"] == ["a", "b", "c"]
    assert [name for name, outcome in outcomes.items() if outcome.was_cached] == ["d"]
    assert steps[2].outputs[0].read_text() == "cba2"
    assert not (b.folder / "old").exists()


def test_equal_outputs_do_not_rerun_dependents(fake):
    a = fake.step("a", text="same")
    b = fake.step("b", a)
    fake.run([a, b])
    fake.clear_events()
    a = fake.step("a", text="same", message="another message")
    outcomes = fake.run([a, b])
    assert {name: outcome.was_cached for name, outcome in outcomes.items()} == {"a": False, "b": True}
