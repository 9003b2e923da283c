"""When a step begins: it resumes in its folder, or the folder's content is moved away, or the folder is refused."""

from dataclasses import replace

import pytest
from support.reproduce.plans import begin_step, make_step

from ssql_det.core.errors import UserError
from ssql_det.reproduce.step_cache import StepCache


@pytest.fixture
def done(tmp_path):
    cache, step = begin_step(tmp_path)
    cache.finish(step, 71.04)
    return cache, step


def test_a_killed_step_resumes_in_its_folder(tmp_path):
    cache, step = begin_step(tmp_path)
    step.outputs[0].unlink()
    cache.begin(step)
    assert step.outputs[1].read_text() == "c.txt"
    assert not cache.is_cached(step)


CHANGES = {
    "another input": lambda folder, step: (folder / "input.bin").write_bytes(b"other"),
    "another argument": lambda folder, step: replace(step, arguments=(*step.arguments, "SEED")),
    "its base": lambda folder, step: (folder / "base.yaml").write_text("A: 1\nB:\n  C: 3\n"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_changed_step_starts_in_an_empty_folder(change, is_finished, tmp_path):
    cache, step = begin_step(tmp_path)
    if is_finished:
        cache.finish(step, 1.0)
    changed = CHANGES[change](tmp_path, step)
    step = changed if isinstance(changed, type(step)) else step
    cache.begin(step)
    assert not step.folder.exists()
    (archive,) = (tmp_path / "out" / "replaced").iterdir()
    assert (archive / "b/c.txt").read_text() == "c.txt"
    step.folder.mkdir()
    (step.folder / "half").touch()
    cache.begin(step)  # killed at once, it resumes
    assert (step.folder / "half").exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_step_with_more_bit_widths_resumes_in_its_folder(is_finished, tmp_path):
    cache, step = begin_step(tmp_path)
    step = replace(step, arguments=("sweep", "--bits", "FP,4", "SEED", "0"), kind="sweep")
    cache.begin(replace(step, folder=tmp_path / "elsewhere"))  # keeps the folder, with another command
    if is_finished:
        cache.finish(step, 1.0)
    wider = replace(step, arguments=("sweep", "--bits", "FP,8,4", "SEED", "0"))
    assert not cache.is_cached(wider)
    cache.begin(wider)
    assert step.outputs[0].exists()
    cache.finish(wider, 1.0)
    assert cache.is_cached(wider)
    cache.begin(replace(wider, arguments=("sweep", "--bits", "FP,8,4", "SEED", "1")))
    assert not step.folder.exists()


def test_a_step_with_an_edited_output_starts_in_an_empty_folder(done):
    cache, step = done
    step.outputs[0].write_text("by hand")
    cache.begin(step)
    assert not step.folder.exists()


def test_a_folder_that_no_step_made_is_refused(tmp_path):
    thesis = tmp_path / "out/work/a/thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    step = make_step("train-a", thesis.parent)
    with pytest.raises(UserError, match=r"work/a exists and was not made by a step; choose another --out"):
        StepCache(tmp_path / "out").begin(step)
    assert thesis.read_text() == "years of work"
    assert not (tmp_path / "out/steps").exists()
    StepCache(tmp_path / "out").begin(replace(step, kind="data"))  # make-toy-data checks its folder itself
    assert thesis.read_text() == "years of work"


def test_a_missing_output_is_an_error(tmp_path):
    cache, step = begin_step(tmp_path)
    step.outputs[1].unlink()
    with pytest.raises(UserError, match=r"train-a ended without an error but did not make .*work/a/b/c\.txt"):
        cache.finish(step, 1.0)
    assert not cache.is_cached(step)
