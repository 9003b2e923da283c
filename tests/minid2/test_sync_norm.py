"""Naive sync norms: two processes against one with batch norm, against their definition, and against Detectron2's.

Gradients of affine parameters are summed over the ranks: what DDP averages.
"""

import pytest
import torch
from support.minid2 import sync_norm_worker
from support.minid2.modules import seed_weights
from support.minid2.structures_and_layers import random_tensor
from torch import nn

from ssql_det.core.launch import launch
from ssql_det.minid2.layers import get_norm
from ssql_det.minid2.utils import comm

pytestmark = pytest.mark.slow

CHANNELS = 4
SHARES = {  # images, height and width of each rank
    "equal": ("naiveSyncBN", (2, 5, 6), (2, 5, 6)),
    "equal, counted": ("naiveSyncBN_N", (2, 5, 6), (2, 5, 6)),
    "3 and 1": ("naiveSyncBN", (3, 5, 6), (1, 5, 6)),
    "3 and 1, counted": ("naiveSyncBN_N", (3, 5, 6), (1, 5, 6)),
    "4 and none, counted": ("naiveSyncBN_N", (4, 5, 6), (0, 5, 6)),
    "none and 1, counted": ("naiveSyncBN_N", (0, 5, 6), (1, 5, 6)),
    "none, counted": ("naiveSyncBN_N", (0, 5, 6), (0, 5, 6)),
    "sizes": ("naiveSyncBN", (3, 5, 6), (2, 9, 4)),
    "sizes, counted": ("naiveSyncBN_N", (3, 5, 6), (1, 9, 4)),
}


def draw(seed, shares, dtype=torch.float64, scale=1):
    drawn = [random_tensor(seed + rank, count, CHANNELS, *size) for rank, (count, *size) in enumerate(shares)]
    return [(scale * (2 * each + 1)).to(dtype) for each in drawn]


CASES = {name: (norm, draw(0, shares), draw(2, shares)) for name, (norm, *shares) in SHARES.items()}
HALVES = [(2, 5, 6), (1, 5, 6)]  # images whose squares half precision cannot hold
CASES["half"] = ("naiveSyncBN_N", draw(0, HALVES, torch.float16, 200), draw(2, HALVES, torch.float16))


def in_two_processes(root, folder):
    """Each rank's answers; on gloo also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        launch(sync_norm_worker.run, root, CASES, folder, processes=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return in_two_processes("ssql_det.minid2", tmp_path_factory.mktemp("ours"))


def fresh():
    return seed_weights(nn.BatchNorm2d(CHANNELS))


def assert_close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["equal", "equal, counted", "3 and 1, counted", "4 and none, counted"])
def test_of_images_of_one_size_it_is_the_batch_norm_of_the_whole_batch(ours, name):
    _, images, directions = CASES[name]
    whole = torch.cat(images)
    expected = sync_norm_worker.step(nn.BatchNorm2d(CHANNELS), whole, torch.cat(directions))
    first, second = (answers[name] for answers in ours)
    for each in ("out", "input"):
        assert_close(torch.cat([first[each], second[each]]), expected[each])
    for each in ("weight", "bias"):
        assert_close(first[each] + second[each], expected[each])
    before = fresh().running_var
    for answers in (first, second):
        assert_close(answers["mean"], expected["mean"])
        # A batch norm remembers the unbiased variance, this one that with which it normalizes.
        assert_close(answers["variance"], before + 0.1 * (whole.var((0, 2, 3), correction=0) - before))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("3 and 1", (1 / 2, 1 / 2)),
        ("sizes", (1 / 2, 1 / 2)),
        ("sizes, counted", (3 / 4, 1 / 4)),
        ("none and 1, counted", (0, 1)),
    ],
)
def test_statistics_are_the_weighted_mean_of_the_ranks(ours, name, weights):
    _, images, directions = CASES[name]
    inputs = [each.clone().requires_grad_() for each in images]
    filled = [(weight, x) for weight, x in zip(weights, inputs, strict=True) if len(x)]
    mean = sum(weight * x.mean((0, 2, 3)) for weight, x in filled)
    variance = sum(weight * x.square().mean((0, 2, 3)) for weight, x in filled) - mean.square()
    norm = fresh()
    outs = []
    for x in inputs:
        normal = (x - mean.view(-1, 1, 1)) / (variance + norm.eps).sqrt().view(-1, 1, 1)
        outs.append(normal * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
    torch.autograd.backward(outs, directions)
    for answers, x, out in zip(ours, inputs, outs, strict=True):
        assert_close(answers[name]["out"], out.detach())
        assert_close(answers[name]["input"], x.grad)
        assert_close(answers[name]["mean"], 0.9 * norm.running_mean + 0.1 * mean.detach())
        assert_close(answers[name]["variance"], 0.9 * norm.running_var + 0.1 * variance.detach())
    for each in ("weight", "bias"):
        assert_close(sum(answers[name][each] for answers in ours), norm.get_parameter(each).grad)


def test_where_no_rank_has_images_nothing_is_learnt(ours):
    norm = fresh()
    for answers in ours:
        got = answers["none, counted"]
        assert got["out"].shape == got["input"].shape == (0, CHANNELS, 5, 6)
        assert torch.equal(got["mean"], norm.running_mean)
        assert torch.equal(got["variance"], norm.running_var)
        assert not got["weight"].any()
        assert not got["bias"].any()


def test_half_precision_is_normalized_in_single(ours):
    norm, (_, images, _) = fresh(), CASES["half"]
    got = torch.cat([answers["half"]["out"] for answers in ours])
    assert got.dtype == torch.float16
    assert_close(got.double(), norm(torch.cat(images).double()).detach(), 1e-3)


@pytest.mark.parametrize("name", ["naiveSyncBN", "naiveSyncBN_N"])
def test_alone_or_in_eval_it_is_a_batch_norm(name, monkeypatch):
    x = CASES["equal"][1][0]
    norm, expected = seed_weights(get_norm(name, CHANNELS)), fresh()
    assert torch.equal(norm(x), expected(x))
    assert torch.equal(norm.running_var, expected.running_var)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)  # there is no group: to ask one would fail
    assert torch.equal(norm.eval()(x), expected.eval()(x))


def test_a_rank_without_images_is_refused_where_they_are_not_counted(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(AssertionError, match="without images there are no statistics"):
        get_norm("naiveSyncBN", CHANNELS)(torch.zeros(0, CHANNELS, 5, 6))


@pytest.mark.detectron2
def test_detectron2_gives_the_same_in_two_processes(ours, tmp_path):
    pytest.importorskip("detectron2.layers")
    for rank, theirs in enumerate(in_two_processes("detectron2", tmp_path)):
        assert_close(ours[rank], theirs, 1e-12)
