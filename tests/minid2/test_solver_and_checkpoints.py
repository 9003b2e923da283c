"""Checkpoints survive a kill, and no code in them runs; optimizers and schedules refuse unsupported settings."""

import os
import pickle
from unittest import mock

import numpy as np
import pytest
import torch
from support.minid2.solver_and_checkpoints import make_toy_model
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.unpickler import read_tensors
from ssql_det.minid2.checkpoint import DetectionCheckpointer
from ssql_det.minid2.checkpoint.c2_model_loading import align_and_update_state_dicts
from ssql_det.minid2.config import get_cfg
from ssql_det.minid2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from ssql_det.minid2.utils.file_io import PathManager


def make_solver_config(*keys):
    cfg = get_cfg()
    cfg.SOLVER.merge_from_list(list(keys))
    return cfg


class Run:
    """A training that can be stopped anywhere."""

    def __init__(self, folder):
        cfg = make_solver_config("MAX_ITER", 20, "WARMUP_ITERS", 4, "STEPS", (8,), "BASE_LR", 0.01)
        self.model = make_toy_model()
        self.optimizer = build_optimizer(cfg, self.model)
        self.schedule = build_lr_scheduler(cfg, self.optimizer)
        self.checkpointer = DetectionCheckpointer(
            self.model, str(folder), optimizer=self.optimizer, scheduler=self.schedule
        )

    def train(self, iterations):
        for iteration in iterations:
            x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(iteration))
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()
        return self

    def state(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path):
    whole = Run(tmp_path / "none").train(range(12)).state()
    Run(tmp_path).train(range(6)).checkpointer.save("model_5", iteration=5)
    resumed = Run(tmp_path)
    assert resumed.checkpointer.resume_or_load("")["iteration"] == 5
    assert_same(resumed.train(range(6, 12)).state(), whole)
    assert all(torch.isfinite(value).all() for value in whole.values())
    fresh = Run(tmp_path)
    fresh.checkpointer.resume_or_load("", resume=False)
    assert_same(fresh.state(), Run(tmp_path).state())


def killed(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", ["os.replace", "os.fsync", "torch.save"])
def test_a_killed_writer_leaves_the_last_good_file(tmp_path, before):
    run = Run(tmp_path).train(range(2))
    run.checkpointer.save("model", iteration=1)
    good = run.state()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run.train(range(2, 4))
    with pytest.raises(KeyboardInterrupt), mock.patch(before, killed):
        run.checkpointer.save("model", iteration=3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    resumed = Run(tmp_path)
    assert resumed.checkpointer.resume_or_load("")["iteration"] == 1
    assert_same(resumed.state(), good)


def test_a_kill_between_a_checkpoint_and_its_tag_leaves_the_last_tag(tmp_path):
    run = Run(tmp_path)
    run.checkpointer.save("first")
    replace = os.replace

    def replace_checkpoints(source, target):
        replace(source, target) if target.endswith(".pth") else killed()

    with pytest.raises(KeyboardInterrupt), mock.patch("os.replace", replace_checkpoints):
        run.checkpointer.save("second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pth", "last_checkpoint", "second.pth"]
    assert run.checkpointer.get_checkpoint_file() == str(tmp_path / "first.pth")


def test_what_a_kill_left_behind_does_not_stay(tmp_path):
    (tmp_path / "model.pth.tmp").write_text("half a file")
    run = Run(tmp_path)
    run.checkpointer.save("model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]
    assert run.checkpointer.load(str(tmp_path / "model.pth")) == {}


def test_a_name_is_not_a_path(tmp_path):
    with pytest.raises(AssertionError, match="not a path"):
        Run(tmp_path).checkpointer.save("../model")


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    monkeypatch.setattr(DetectionCheckpointer, "read_file", staticmethod(read_tensors))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["model.pth", "zipped.pth", "model.pkl", "model"])
def test_what_is_in_a_file_is_not_run(tmp_path, name):
    trap, path = tmp_path / "trap", tmp_path / name
    content = {"model": {"fc.weight": torch.ones(1)}, "evil": Evil(str(trap))}
    if name == "zipped.pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=f"{path} is refused: "):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(path))
    assert not trap.exists()
    if name != "zipped.pth":
        pickle.loads(path.read_bytes())
        assert trap.exists()  # it would have worked


def test_without_a_reader_nothing_is_read(tmp_path, monkeypatch):
    torch.save({"model": nn.Linear(1, 1).state_dict()}, tmp_path / "model.pth")
    monkeypatch.setattr(DetectionCheckpointer, "read_file", None)
    with pytest.raises(NotImplementedError, match=r"Cannot load .*model\.pth: DetectionCheckpointer"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"whole", [1, 2], {"model": 3}, torch.ones(2)])
def test_a_file_without_weights(tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.ones(100)}} if isinstance(content, bytes) else content, path)
    if isinstance(content, bytes):
        path.write_bytes(path.read_bytes()[:-300] if content == b"whole" else content)
    with pytest.raises((UserError, ValueError), match=f"Cannot load {path}|{path} is not a readable checkpoint"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(path))


def test_weights_that_are_missing(tmp_path):
    loader = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nowhere/model\.pth does not exist.*MODEL\.WEIGHTS"):
        loader.resume_or_load("nowhere/model.pth")
    loader.save("model_1")
    (tmp_path / "model_1.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_1\.pth, which .*last_checkpoint names, does not exist"):
        loader.resume_or_load("nowhere/model.pth")
    (tmp_path / "last_checkpoint").write_text("")
    with pytest.raises(FileNotFoundError, match=r"which .*last_checkpoint names"):
        loader.resume_or_load("")


@pytest.mark.parametrize("scheme", ["detectron2", "catalog", "https", "http", "ftp"])
def test_what_needs_a_network(scheme):
    path = f"{scheme}://ImageNetPretrained/MSRA/R-50.pkl"
    for read in (DetectionCheckpointer(nn.Linear(1, 1)).load, PathManager.open):
        with pytest.raises(ValueError, match=rf"Cannot read {path}, which needs a network.*\.pth"):
            read(path)


def test_weights_that_are_read_already():
    model = nn.Sequential(nn.Linear(2, 1))
    weights = {"weight": np.full((1, 2), 3.0, np.float32), "bias": torch.ones(1)}
    misfits = DetectionCheckpointer(model)._load_model({"model": weights, "matching_heuristics": True})
    assert (*misfits,) == ([], [], [])
    assert model[0].weight.tolist() == [[3.0, 3.0]]
    of_caffe2 = {"model": {"conv1_w": torch.ones(1)}, "__author__": "Caffe2", "matching_heuristics": True}
    with pytest.raises(NotImplementedError, match="Caffe2's weight names"):
        DetectionCheckpointer(model)._load_model(of_caffe2)


def test_weights_that_two_would_take():
    model = {"a.conv.weight": torch.ones(1), "b.conv.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"conv\.weight is a suffix of a\.conv\.weight and of b\.conv\.weight"):
        align_and_update_state_dicts(model, {"conv.weight": torch.ones(1)}, c2_conversion=False)
    assert align_and_update_state_dicts(model, {}, c2_conversion=False) == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["LR_SCHEDULER_NAME", "WarmupPolyLR"], "LR_SCHEDULER_NAME is 'WarmupPolyLR'"),
        (["WARMUP_METHOD", "burnin"], "'burnin'"),
        (["CLIP_GRADIENTS.ENABLED", True, "CLIP_GRADIENTS.CLIP_TYPE", "full_model"], "CLIP_TYPE is 'full_model'"),
    ],
)
def test_what_a_solver_does_not_know(keys, message):
    cfg, model = make_solver_config(*keys), nn.Linear(1, 1)
    with pytest.raises(ValueError, match=message):
        build_lr_scheduler(cfg, build_optimizer(cfg, model))


@pytest.mark.parametrize(("kind", "bound"), [("value", 0.01), ("norm", 0.05)])
def test_clipping_bounds_each_gradient(kind, bound):
    clipping = ["CLIP_GRADIENTS.ENABLED", True, "CLIP_GRADIENTS.CLIP_TYPE", kind, "CLIP_GRADIENTS.CLIP_VALUE", bound]
    model = make_toy_model()
    optimizer = build_optimizer(make_solver_config(*clipping), model)
    model(torch.randn(5, 3, dtype=torch.float64)).square().sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.step()
    size = torch.Tensor.norm if kind == "norm" else (lambda gradient: gradient.abs().max())
    assert any(size(gradient) > 2 * bound for gradient in before)
    for gradient, parameter in zip(before, model.parameters(), strict=True):
        assert size(parameter.grad) <= bound * (1 + 1e-9)
        if size(gradient) < bound:
            assert torch.equal(gradient, parameter.grad)


def test_overrides_stay_the_callers():
    mine = {"weight": {"lr": 0.5}}
    groups = get_default_optimizer_params(make_toy_model(), base_lr=1.0, bias_lr_factor=2.0, overrides=mine)
    assert [group["lr"] for group in groups] == [0.5, 2.0]
    assert mine == {"weight": {"lr": 0.5}}
