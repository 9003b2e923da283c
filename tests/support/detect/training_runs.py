"""Trainings that are stopped, and what they leave behind, so that one can be compared with another."""

import contextlib
import dataclasses
import json

import pytest
import torch
from support.detect.configs import C4, CONFIGS, tiny

from ssql_det.core.unpickler import read_tensors
from ssql_det.detect import train as training
from ssql_det.detect.detector import build_detector
from ssql_det.detect.train import train

LOOKING = {"SSQL_DET__EVAL_PERIOD": 4, "SSQL_DET__EVAL_BITS": ["FP", "4w4a"], "SSQL_DET__CALIB_IMAGES": 2}


def arguments(out, *flags, **keys):
    """Of the command; KEY VALUE pairs come last."""
    return ["train-det", "--config-file", str(CONFIGS / C4), *flags, *tiny(OUTPUT_DIR=out, **keys)]


def final(folder):
    return read_tensors(folder / "model_final.pth")


def curves(folder):
    """As they were written, but for how long it took."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{**line, "time": None, "eta_seconds": None} for line in lines]


def same(ours, theirs):
    """Bit for bit, however deep."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(same(*pair) for pair in zip(ours, theirs, strict=True))
    return bool(torch.as_tensor(ours == theirs).all())


def ends_as(killed, whole):
    """Whether a run that was killed has what one that was not has, and nothing half written."""
    ours, theirs = final(killed), final(whole)
    for each in (ours, theirs):  # nothing draws from Python's and NumPy's, and nobody seeds CUDA's here
        each["rng"] = [state["cpu"] for state in each["rng"]]
    return same(ours, theirs) and curves(killed) == curves(whole) and not list(killed.glob(".*"))


def numbers(found):
    """Rows by bits, without when it was and how long it took."""
    return {row.bits: dataclasses.replace(row, seconds=0.0, time="") for row in found}


class StoppedError(Exception):
    """As a kill, but within this process."""


@contextlib.contextmanager
def stopped_in_step(number):
    """The optimizer's step of that number does not come back."""
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
    """What the first step of a training would go by, by parameter; ``build`` makes the network that it begins with."""
    built = []

    def remembered(cfg):
        built.append(build(cfg))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch, stopped_in_step(1):
        patch.setattr(training, "build_detector", remembered)
        train(cfg, C4)
    return {name: each.grad.clone() for name, each in built[-1].named_parameters() if each.grad is not None}


@contextlib.contextmanager
def sampling_the_first():
    """Of regions to sample from, the first are taken instead of any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda count, **options: torch.arange(count, device=options.get("device")))
        yield


def farthest(ours, theirs):
    """The largest difference between tensors of the same names, each in units of its largest value."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - each).abs().max() / each.abs().max().clamp(min=1e-6)) for name, each in theirs.items()
    )
