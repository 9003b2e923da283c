"""Trainings that are stopped, and comparisons of what runs write."""

import contextlib
import dataclasses
import json

import pytest
import torch
import yaml
from support.detect.configs import C4, CONFIGS, tiny_overrides

from ssql_det.core.files import sha256
from ssql_det.core.unpickler import read_tensors
from ssql_det.detect import train as training
from ssql_det.detect.detector import build_detector
from ssql_det.detect.train import train

WITH_EVALUATIONS = {"SSQL_DET__EVAL_PERIOD": 4, "SSQL_DET__EVAL_BITS": ["FP", "4w4a"], "SSQL_DET__CALIB_IMAGES": 2}
TIMES = {"time", "eta_seconds", "seconds"}  # in rows and curves


def train_arguments(out, *flags, **keys):
    """The arguments of a small ``train-det``."""
    return ["train-det", "--config-file", str(CONFIGS / C4), *flags, *tiny_overrides(OUTPUT_DIR=out, **keys)]


def read_final(folder):
    return read_tensors(folder / "model_final.pth")


def read_scalars(folder):
    """The lines of metrics.jsonl without times."""
    return _read_without_times(folder / "metrics.jsonl")


def is_equal(ours, theirs):
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(is_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(is_equal(*pair) for pair in zip(ours, theirs, strict=True))
    return bool(torch.as_tensor(ours == theirs).all())


def read_run(folder):
    """What identifies the content of each file, hidden ones too, but for times and OUTPUT_DIR. TensorBoard's
    files are full of times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard"]
    return {path.relative_to(folder): _read_without_times(path) for path in files}


def _read_without_times(path):
    if path.suffix == ".jsonl":
        lines = map(json.loads, path.read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text()) | {"OUTPUT_DIR": ""}
    return sha256(path)


def rows_by_bits(found):
    """Rows by bit-width, without times."""
    return {row.bits: dataclasses.replace(row, seconds=0.0, time="") for row in found}


class StoppedError(Exception):
    """Raised in place of a kill."""


@contextlib.contextmanager
def stopping_in_step(number):
    """The training is stopped in the optimizer's step of that number."""
    step, count = torch.optim.SGD.step, 0

    def counted(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            raise StoppedError
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", counted)
        with contextlib.suppress(StoppedError):
            yield
            pytest.fail("it was not stopped")


def first_gradients(cfg, build=build_detector):
    """The gradients of a training's first step, by parameter."""
    built = []

    def remembered(cfg):
        built.append(build(cfg))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch, stopping_in_step(1):
        patch.setattr(training, "build_detector", remembered)
        train(cfg, C4)
    return {name: each.grad.clone() for name, each in built[-1].named_parameters() if each.grad is not None}


@contextlib.contextmanager
def sampling_first_regions():
    """The first regions are sampled instead of random ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda count, **options: torch.arange(count, device=options.get("device")))
        yield


def largest_difference(ours, theirs):
    """The largest difference between tensors of the same names, relative to the largest value of each."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - each).abs().max() / each.abs().max().clamp(min=1e-6)) for name, each in theirs.items()
    )
