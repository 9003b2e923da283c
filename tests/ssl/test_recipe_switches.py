"""Switches between the published SSQL code's recipes and those of the methods' own papers."""

import logging

import pytest
import torch
from torch import nn

from ssql_det.backbones import build_backbone
from ssql_det.pretrain.optim import OptimConfig, build_optimizer, set_learning_rate
from ssql_det.ssl import MoCo, SimCLR, SimSiam, simclr


def make_views():
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [images, images.flip(3)]


def make_optim(name):
    return OptimConfig(name, 8, 10, 0.4, 0.9, 1e-4, 0.0, per_epoch=False)


def collect_rates(optimizer, network):
    """The rate of each parameter by name."""
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("name", ["sgd", "lars"])
@pytest.mark.parametrize("is_fixed", [True, False])
def test_the_predictor_can_keep_its_learning_rate(name, is_fixed):
    method = SimSiam(build_backbone("narrow_resnet"), dim=16, hidden=8, fix_predictor_lr=is_fixed)
    optim = make_optim(name)
    optimizer = build_optimizer(optim, method, at_fixed_lr=method.modules_at_fixed_lr)
    set_learning_rate(optimizer, optim, 0.1)
    for parameter, rate in collect_rates(optimizer, method).items():
        assert rate == (0.4 if is_fixed and parameter.startswith("predictor.") else 0.1), parameter


def test_groups_have_a_factor_of_their_own():
    optim, layer, other = make_optim("sgd"), nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = build_optimizer(optim, layer, [{"params": [*other.parameters()], "lr_factor": 0.5}])
    set_learning_rate(optimizer, optim, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_negatives_can_be_those_of_the_own_process_alone(monkeypatch):
    torch.manual_seed(0)
    method = SimCLR(build_backbone("narrow_resnet"), dim=8, hidden=8, gather=False).double()
    views = [view.double() for view in make_views()]
    alone = method(views)
    monkeypatch.setattr(simclr, "world_size", lambda: 4)
    monkeypatch.setattr(simclr, "rank", lambda: 3)
    assert torch.equal(method(views), alone)


def test_one_process_says_once_that_it_shuffles_nothing(caplog):
    caplog.set_level(logging.WARNING, "ssql_det")
    method = MoCo(build_backbone("narrow_resnet"), dim=8, hidden=8, queue=16)
    for _ in range(2):
        method(make_views())
    assert caplog.messages == ["MoCo shuffles images over processes; with one, BatchNorm can reveal the positives"]


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_resnet50"])
def test_convs_of_cifar_networks_start_as_torchs_do(name):
    """Uniform, up to the inverse square root of the number of inputs; see ``nn.Conv2d.reset_parameters``."""
    for conv in build_backbone(name).module.modules():
        if isinstance(conv, nn.Conv2d):
            bound = conv.weight[0].numel() ** -0.5
            largest = conv.weight.abs().max().item()
            assert 0.98 * bound < largest <= bound * (1 + 1e-6)
            assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
