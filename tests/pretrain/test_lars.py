"""LARS as pretraining and the published linear probe use it, against steps written by hand; float64."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from support.pretrain.runs import MINI
from timm.optim.lars import Lars
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.optimizer_state import load_optimizer_state
from ssql_det.pretrain.classifiers import _OPTIMIZERS
from ssql_det.pretrain.config import read_config
from ssql_det.pretrain.optim import build_optimizer

RATES = (0.5, 0.5, 0.2, 0.05)


def layer_and_gradients():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    gradients = [[torch.randn_like(each) for each in layer.parameters()] for _ in RATES]
    return layer, gradients


def build_pretraining_optimizer(layer, decay=0.0):
    keys = ["OPTIM.NAME", "lars", "OPTIM.MOMENTUM", "0.9", "OPTIM.WEIGHT_DECAY", str(decay)]
    return build_optimizer(read_config(MINI, keys).optim, layer)


def take_steps(optimizer, layer, gradients, rates=RATES):
    for rate, step_gradients in zip(rates, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(layer.parameters(), step_gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach().numpy().copy() for parameter in layer.parameters()]


def steps_by_hand(weight, gradients, decay, is_adapted):
    """You et al., equations 6 and 7, in NumPy; the rate multiplies the velocity."""
    weight, velocity = weight.copy(), np.zeros_like(weight)
    for rate, gradient in zip(RATES, gradients, strict=True):
        local_rate = 1.0
        if is_adapted:
            norm = np.sqrt((weight**2).sum())
            local_rate = 0.001 * norm / (np.sqrt((gradient**2).sum()) + decay * norm)
        velocity = 0.9 * velocity + local_rate * (gradient + (decay * weight if is_adapted else 0))
        weight = weight - rate * velocity
    return weight


OPTIMIZERS = {
    "pretraining": (partial(build_pretraining_optimizer), 0.0, False),
    "pretraining with decay": (partial(build_pretraining_optimizer, decay=0.3), 0.3, False),
    "linear probe": (lambda layer: _OPTIMIZERS["LARS"](layer.parameters(), lr=1, momentum=0.9), 0.0, True),
}


@pytest.mark.parametrize(("build", "decay", "is_bias_adapted"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_equal_those_by_hand(build, decay, is_bias_adapted):
    layer, gradients = layer_and_gradients()
    before = [parameter.detach().numpy().copy() for parameter in layer.parameters()]
    after = take_steps(build(layer), layer, gradients)
    for index, (start, is_adapted) in enumerate(zip(before, (True, is_bias_adapted), strict=True)):
        expected = steps_by_hand(start, [step[index].numpy() for step in gradients], decay, is_adapted)
        np.testing.assert_allclose(after[index], expected, rtol=1e-12)


def test_the_step_does_not_depend_on_the_scale_of_the_gradient():
    moves = []
    for scale in (1.0, 1e6):
        layer, ((gradient, _), *_) = layer_and_gradients()
        before = layer.weight.detach().clone()
        layer.weight.grad = scale * gradient
        optimizer = build_pretraining_optimizer(layer)
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        moves.append(layer.weight.detach() - before)
        assert moves[-1].norm() == pytest.approx(0.5 * 0.001 * before.norm())
    torch.testing.assert_close(moves[0], moves[1])


def test_a_stopped_run_continues_with_the_same_steps():
    layer, gradients = layer_and_gradients()
    whole = take_steps(build_pretraining_optimizer(layer), layer, gradients)

    layer, _ = layer_and_gradients()
    first = build_pretraining_optimizer(layer)
    take_steps(first, layer, gradients[:2], RATES[:2])
    second = build_pretraining_optimizer(layer)
    load_optimizer_state(second, copy.deepcopy(first.state_dict()))
    resumed = take_steps(second, layer, gradients[2:], RATES[2:])
    assert all(np.array_equal(one, other) for one, other in zip(resumed, whole, strict=True))


def test_pretraining_selects_the_optimizer_by_name():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    network[0].bias.requires_grad = False
    optimizer = build_optimizer(read_config(MINI, ["OPTIM.NAME", "lars", "OPTIM.MOMENTUM", "0.8"]).optim, network)
    assert isinstance(optimizer, Lars)
    weights, vectors = optimizer.param_groups
    assert (weights["lr"], weights["momentum"], weights["weight_decay"], weights["always_adapt"]) == (
        *(0.1, 0.8),
        *(0.0005, True),
    )
    assert (vectors["lr"], vectors["weight_decay"], vectors["always_adapt"]) == (0.1, 0, False)
    shapes = [[tuple(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]
    assert shapes == [[(3, 4)], [(3,), (3,)]]
    assert isinstance(build_optimizer(read_config(MINI).optim, network), torch.optim.SGD)
    with pytest.raises(UserError, match=r"OPTIM\.NAME 'larz' is unknown; did you mean 'lars'\? \(known: sgd, lars\)"):
        read_config(MINI, ["OPTIM.NAME", "larz"])
