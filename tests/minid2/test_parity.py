"""minid2's answers in all scenarios against Detectron2's: recorded ones everywhere, live ones where it is installed.

The record is made by ``tests/goldens/make.py``. Live: ``pytest -m detectron2`` with Detectron2 importable.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.minid2 import record_answers

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "goldens/answers.npz"
NUM_STABLE_STEPS = 3  # steps of a training that are the same on every processor


def is_detectron2_installed():
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def assert_equal(ours, theirs):
    tolerances = {
        each.__name__: tolerance for each, tolerance in {**record_answers.RECORDED, **record_answers.LIVE_ONLY}.items()
    }
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        got = ours[name]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
        if got.dtype.kind == "f":
            finite = np.isfinite(expected)
            largest = np.abs(expected[finite]).max(initial=0)
            np.testing.assert_allclose(
                got, expected, rtol=0, atol=tolerances[name.split("/")[0]] * largest, err_msg=name
            )
        else:
            np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.fixture(scope="module")
def ours():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.minid2.training.trained_steps", NUM_STABLE_STEPS)
        return record_answers.compute_answers("ssql_det.minid2")


def drop_processor_dependent(answers):
    """Keep only the first steps of a training: another processor rounds differently in the last digit, and from the
    fourth step on (seen on one; on another from the tenth) other regions are sampled. In the live comparison, both
    engines run on one processor.
    """
    is_after = re.compile(r"first_steps/.* (shares|sizes)").fullmatch  # what all steps have changed in the weights
    is_of_steps = re.compile(r"first_steps/.* losses").fullmatch
    return {
        name: value[:NUM_STABLE_STEPS] if is_of_steps(name) else value
        for name, value in answers.items()
        if not is_after(name)
    }


@pytest.mark.parametrize("scenario", [each.__name__ for each in record_answers.RECORDED])
def test_the_recorded_answers(ours, scenario):
    with np.load(GOLDEN) as golden:
        theirs = {name: golden[name] for name in golden.files if name.startswith(f"{scenario}/")}
    assert theirs
    mine = {name: value for name, value in ours.items() if name.startswith(f"{scenario}/")}
    assert mine.keys() == theirs.keys()
    assert_equal(drop_processor_dependent(mine), drop_processor_dependent(theirs))


@pytest.mark.detectron2
@pytest.mark.skipif(not is_detectron2_installed(), reason="Detectron2 is not installed")
def test_the_live_answers(tmp_path):
    answers = []
    for root in ("ssql_det.minid2", "detectron2"):
        path = tmp_path / f"{root}.npz"
        subprocess.run(
            [sys.executable, "-m", "support.minid2.record_answers", root, path, "--live"], cwd=HERE.parent, check=True
        )
        with np.load(path) as live:
            answers.append(dict(live))
    assert_equal(*answers)
