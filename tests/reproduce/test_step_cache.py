"""The step cache: a step is cached while its command, inputs and outputs are unchanged."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reproduce.plans import begin_step, make_step

from ssql_det.core.errors import UserError
from ssql_det.reproduce.step_cache import StepCache, fingerprint_content

pytestmark = pytest.mark.slow


@pytest.fixture
def done(tmp_path):
    cache, step = begin_step(tmp_path)
    cache.finish(step, 71.04)
    return cache, step


CHANGES = {
    "another argument": lambda f, step: replace(step, arguments=(*step.arguments[:2], "0.2", *step.arguments[3:])),
    "one argument more": lambda f, step: replace(step, arguments=(*step.arguments, "SEED")),
    "another order": lambda f, step: replace(step, arguments=step.arguments[::-1]),
    "another input": lambda f, step: (f / "input.bin").write_bytes(b"other"),
    "an input is gone": lambda f, step: (f / "input.bin").unlink(),
    "an output of the step before": lambda f, step: (f / "out/before/made.txt").write_text("other"),
    "one input more": lambda f, step: replace(step, inputs=(*step.inputs, f / "base.yaml")),
    "one input less": lambda f, step: replace(step, inputs=step.inputs[:-1]),
    "the config": lambda f, step: (f / "config.yaml").write_text("_BASE_: base.yaml\nD: 4\n"),
    "its base": lambda f, step: (f / "base.yaml").write_text("A: 1\nB:\n  C: 3\n"),
    "no base": lambda f, step: (f / "config.yaml").write_text("D: 3\n"),
    "an output is gone": lambda f, step: step.outputs[1].unlink(),
    "an output is altered": lambda f, step: step.outputs[0].write_text("other"),
    "an output is longer": lambda f, step: step.outputs[0].write_text("a.txt\n"),
    "an output more": lambda f, step: replace(step, outputs=(*step.outputs, f / "input.bin")),
}


def test_a_config_changed_during_a_step_makes_it_outdated(tmp_path):
    cache, step = begin_step(tmp_path)
    (tmp_path / "config.yaml").write_text("_BASE_: base.yaml\nD: 4\n")
    cache.finish(step, 1.0)
    assert not cache.is_cached(step)


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_makes_a_step_outdated(change, done, tmp_path):
    cache, step = done
    assert cache.is_cached(step)
    changed = CHANGES[change](tmp_path, step)
    step = changed if isinstance(changed, type(step)) else step
    assert not cache.is_cached(step)


def test_irrelevant_changes_keep_a_step_cached(done, tmp_path):
    cache, step = done
    (tmp_path / "base.yaml").write_text("# the same values\nB: {C: 2}\nA: 1\n")
    (tmp_path / "input.bin").touch()
    (step.folder / "log.txt").write_text("more")
    assert cache.is_cached(step)
    assert cache.is_cached(replace(step, minutes=9.0, megabytes=9.0))
    assert cache.get_seconds(step) == 71.0
    assert StepCache(cache.out).get_seconds(make_step("another", tmp_path)) is None


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, max_size=4), st.binary(max_size=9), st.binary(min_size=1, max_size=3), st.data())
def test_a_step_is_cached_once_finished_until_any_change(arguments, content, more, data):
    with tempfile.TemporaryDirectory() as folder:
        cache, step = begin_step(Path(folder), arguments=arguments, content=content)
        assert not cache.is_cached(step)
        cache.finish(step, 0.0)
        assert cache.is_cached(step)
        if data.draw(st.booleans()):
            changed = data.draw(st.lists(texts, max_size=4).filter(lambda other: other != arguments))
            assert not cache.is_cached(replace(step, arguments=(*changed, *step.arguments[-2:])))
        file = data.draw(st.sampled_from((*step.inputs[1:], *step.outputs)))
        file.write_bytes(file.read_bytes() + more)
        assert not cache.is_cached(step)


@pytest.mark.parametrize(("out", "moved"), [("out", "elsewhere"), ("n", "t"), ("out", "out/put"), ("a", "OUT")])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_steps_stay_cached_when_the_folder_is_moved(out, moved, is_absolute, tmp_path, monkeypatch):
    """Only whole paths are recognized as the folder, however short its name."""
    monkeypatch.chdir(tmp_path)
    parent = tmp_path if is_absolute else Path()
    cache, step = begin_step(parent, out, arguments=("train", "non", "outer", "-a-"))
    cache.finish(step, 1.0)
    shutil.move(parent / out, tmp_path / "temporary")
    (parent / moved).parent.mkdir(exist_ok=True)
    shutil.move(tmp_path / "temporary", parent / moved)

    def move(path):
        return parent / moved / path.relative_to(parent / out)

    moved_step = replace(
        step,
        folder=move(step.folder),
        outputs=tuple(map(move, step.outputs)),
        inputs=(*step.inputs[:2], move(step.inputs[2])),
        arguments=(*step.arguments[:-1], str(move(step.folder))),
    )
    assert StepCache(parent / moved).is_cached(moved_step)
    moved_step.outputs[0].write_text("other")
    assert not StepCache(parent / moved).is_cached(moved_step)


ASKED = b'{"asked": {"arguments": [], "read": {}}, %s}'


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"7", b"null", b'"asked"', b"{}", b'{"made": {}}', b"\xff", b"[{}]"),
        *(b'{"asked": null}', b'{"asked": {"arguments": 5, "read": {}}}', b'{"asked": {"arguments": []}}'),
        *(ASKED % each for each in (b'"made": null', b'"seconds": "7"', b'"seconds": NaN', b'"seconds": -1')),
    ],
)
def test_a_damaged_record_is_refused(content, done):
    cache, step = done
    (cache.out / "steps/train-a.json").write_bytes(content)
    for call in (cache.is_cached, cache.begin, cache.get_seconds):
        with pytest.raises(UserError, match=r"steps/train-a\.json is damaged; delete it together with .*work/a$"):
            call(step)
    assert step.outputs[0].exists()


def test_an_interrupted_write_keeps_the_old_record(done, monkeypatch):
    cache, step = done
    monkeypatch.setattr(json, "dump", lambda entry, file, **ignored: (file.write("half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        cache.finish(step, 9.0)
    assert cache.is_cached(step)
    assert cache.get_seconds(step) == 71.0


def test_the_fingerprint_of_a_config_depends_only_on_its_values(tmp_path):
    config = tmp_path / "a.yml"
    config.write_text("A: 1  # one")
    first_fingerprint = fingerprint_content(config)
    config.write_text("A: 1")
    assert fingerprint_content(config) == first_fingerprint
    config.write_text("A: '1'")
    assert fingerprint_content(config) != first_fingerprint
