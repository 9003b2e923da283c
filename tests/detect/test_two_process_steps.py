"""A training step with several processes: mean gradients, and norms over all their images."""

import itertools
import re

import pytest
import torch
from support.detect import processes
from support.detect.training_runs import first_gradients, is_equal, largest_difference

from ssql_det.core.rng import seed_all
from ssql_det.detect import train as training
from ssql_det.detect.detector import build_detector
from ssql_det.detect.train_loader import build_train_loader


def load_ranks(folder, name="{}.pt"):
    return [torch.load(folder / name.format(rank)) for rank in (0, 1)]


# ---- gradients -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reduced(run_in_processes):
    return run_in_processes("save_gradients")


def single_process_gradients(rank, case, folder, monkeypatch):
    """The gradients of one process with a rank's images and seed, and the weights of rank 0."""
    cfg = processes.case_config(case, folder / f"{rank}")
    shares = (batch[rank::2] for batch in build_train_loader(cfg, cfg.SEED))

    def build(cfg):
        torch.manual_seed(cfg.SEED)
        model = processes.build_in_float64(cfg)
        seed_all(cfg.SEED + rank)
        build_detector(cfg)  # draws the numbers that this rank drew for its own weights
        return model

    with monkeypatch.context() as patch:
        patch.setattr(training, "build_train_loader", lambda *args, **kwargs: shares)
        return first_gradients(cfg, build)


@pytest.mark.parametrize("case", processes.CASES)
def test_the_reduced_gradient_is_the_mean_of_two_processes_gradients(case, reduced, monkeypatch, tmp_path):
    """As in Detectron2: each rank divides its losses by its own regions, and all ranks have the same weight."""
    (first, _), (second, _) = load_ranks(reduced, f"{case}, rank {{}}.pt")
    assert is_equal(first, second)
    singles = [single_process_gradients(rank, case, tmp_path, monkeypatch) for rank in (0, 1)]
    assert largest_difference(*singles) > 0.1
    mean = {name: (singles[0][name] + singles[1][name]) / 2 for name in first}
    assert largest_difference(first, mean) <= 1e-9


def test_gradients_are_reduced_once_after_the_last_micro_batch(reduced):
    before, between = zip(*(parts for _, parts in load_ranks(reduced, "C4, two parts, rank {}.pt")), strict=True)
    assert before == (None, None)
    assert not torch.equal(*between)


def test_with_synchronized_norms_two_processes_equal_one(run_in_processes):
    expected = torch.load(run_in_processes("save_gradients_with_norm", "BN", processes=1) / "0.pt")
    for norm, kept in (("naiveSyncBN", True), ("BN", False)):
        first, second = load_ranks(run_in_processes("save_gradients_with_norm", norm))
        assert is_equal(first, second)
        assert (largest_difference(first, expected) <= 1e-5) == kept  # boxes are float32


def test_quantized_passes_of_two_processes_equal_those_of_one(run_in_processes):
    """The ranges are merged, and the gradients are averaged once, after the last pass."""
    expected, _ = torch.load(run_in_processes("save_quantized_gradients", processes=1) / "0.pt")
    (first, second), before = zip(*load_ranks(run_in_processes("save_quantized_gradients")), strict=True)
    assert is_equal(first, second)
    assert largest_difference(first, expected) <= 1e-9
    before_float_pass, before_quantized_pass = zip(*before, strict=True)
    assert before_float_pass == (None, None)
    assert not torch.equal(*before_quantized_pass)


# ---- the norms' statistics -----------------------------------------------------------------------------------------


def compute_statistics(model, norms, batches):
    """Mean and variance of the inputs of some norms over all batches."""
    pixels = {name: [] for name in norms}

    def record(name):
        return lambda _, given: pixels[name].append(given[0].transpose(0, 1).flatten(1))

    hooks = [model.get_submodule(name).register_forward_pre_hook(record(name)) for name in norms]
    with torch.no_grad():
        for batch in batches:
            model.train().backbone(model.preprocess_image(batch).tensor)
    for hook in hooks:
        hook.remove()
    of_all = {name: torch.cat(each, dim=1) for name, each in pixels.items()}
    return {name: (each.mean(1), each.var(1, correction=0)) for name, each in of_all.items()}


def test_precise_bn_averages_over_ranks(run_in_processes, tmp_path):
    found, of_the_second = load_ranks(run_in_processes("save_estimated_norms"))
    assert is_equal(found, of_the_second)
    cfg = processes.case_config("C4", tmp_path)
    torch.manual_seed(0)
    model = processes.build_in_float64(cfg)
    norms = [name.removesuffix(".running_mean") for name in found if re.match(r"backbone\..*\.running_mean", name)]
    assert len(norms) == 9
    shares = []
    for rank in (0, 1):
        batches = itertools.islice(build_train_loader(cfg, cfg.SEED + 1), cfg.TEST.PRECISE_BN.NUM_ITER)
        shares.append(compute_statistics(model, norms, (batch[rank::2] for batch in batches)))
    for name in norms:
        means, variances = map(torch.stack, zip(*(share[name] for share in shares), strict=True))
        torch.testing.assert_close(found[f"{name}.running_mean"], means.mean(0))
        torch.testing.assert_close(found[f"{name}.running_var"], variances.mean(0) + means.var(0, correction=0))


@pytest.mark.parametrize("is_precise", [True, False])
def test_a_periodic_evaluation_has_the_same_model_on_every_rank(is_precise, run_in_processes):
    first, second = load_ranks(run_in_processes("save_evaluated_models", is_precise))
    assert len(first) == 3
    assert is_equal(first, second)
