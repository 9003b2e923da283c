"""LARS against steps that are written out, in float64, and what becomes of biases, of zeros and of a stopped run."""

import copy

import numpy as np
import pytest
import torch
from support.pretrain.runs import MINI
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.pretrain.config import read_config
from ssql_det.pretrain.optim import LARS, build_optimizer

RATES = (0.5, 0.5, 0.2, 0.05)


def layer_and_gradients():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    gradients = [[torch.randn_like(each) for each in layer.parameters()] for _ in RATES]
    return layer, gradients


def stepped(optimizer, layer, gradients, rates=RATES):
    for rate, gradient in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, own in zip(layer.parameters(), gradient, strict=True):
            parameter.grad = own.clone()
        optimizer.step()
    return [parameter.detach().numpy().copy() for parameter in layer.parameters()]


def by_hand(weight, gradients, decay, is_scaled):
    """You et al., equations 6 and 7, in NumPy; the rate multiplies the velocity."""
    weight, velocity = weight.copy(), np.zeros_like(weight)
    for rate, gradient in zip(RATES, gradients, strict=True):
        local = 1.0
        if is_scaled:
            size = np.sqrt((weight**2).sum())
            local = 0.02 * size / (np.sqrt((gradient**2).sum()) + decay * size)
        velocity = 0.9 * velocity + local * (gradient + (decay * weight if is_scaled else 0))
        weight = weight - rate * velocity
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("vectors", [False, True])
def test_steps_are_those_written_out(decay, vectors):
    layer, gradients = layer_and_gradients()
    before = [parameter.detach().numpy().copy() for parameter in layer.parameters()]
    optimizer = LARS(layer.parameters(), lr=1, momentum=0.9, weight_decay=decay, trust=0.02, vectors=vectors)
    found = stepped(optimizer, layer, gradients)
    for index, (start, is_scaled) in enumerate(zip(before, (True, vectors), strict=True)):
        expected = by_hand(start, [step[index].numpy() for step in gradients], decay, is_scaled)
        np.testing.assert_allclose(found[index], expected, rtol=1e-12)


def test_the_step_is_as_large_for_any_gradient():
    moves = []
    for size in (1.0, 1e6):
        layer, ((gradient, _), *_) = layer_and_gradients()
        before = layer.weight.detach().clone()
        layer.weight.grad = size * gradient
        LARS(layer.parameters(), lr=0.5).step()
        moves.append(layer.weight.detach() - before)
        assert moves[-1].norm() == pytest.approx(0.5 * 0.001 * before.norm())
    torch.testing.assert_close(moves[0], moves[1])


def test_zeros_begin_to_move_and_stay_numbers():
    weight = torch.zeros(2, 3, requires_grad=True)
    weight.grad = torch.ones(2, 3)
    optimizer = LARS([weight], lr=0.5, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.full((2, 3), -0.5))  # nothing to be in proportion to
    weight.grad = torch.zeros(2, 3)
    LARS([weight], lr=0.5).step()
    assert torch.equal(weight.detach(), torch.full((2, 3), -0.5))


def test_a_stopped_run_goes_on():
    layer, gradients = layer_and_gradients()
    whole = stepped(LARS(layer.parameters(), lr=1), layer, gradients)

    layer, _ = layer_and_gradients()
    first = LARS(layer.parameters(), lr=1)
    stepped(first, layer, gradients[:2], RATES[:2])
    saved = copy.deepcopy(first.state_dict())
    second = LARS(layer.parameters(), lr=1)
    second.load_state_dict(saved)
    found = stepped(second, layer, gradients[2:], RATES[2:])
    assert all(np.array_equal(one, other) for one, other in zip(found, whole, strict=True))


def test_a_closure_is_evaluated_with_gradients():
    weight = torch.ones(2, 2, requires_grad=True)

    def loss():
        total = weight.sum()
        total.backward()
        return total

    assert LARS([weight], lr=1).step(loss) == 4
    assert (weight < 1).all()


def test_pretraining_takes_it_by_name():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    network[0].bias.requires_grad = False
    optimizer = build_optimizer(read_config(MINI, ["OPTIM.NAME", "lars", "OPTIM.MOMENTUM", "0.8"]).optim, network)
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, LARS)
    assert (group["lr"], group["momentum"], group["weight_decay"], group["vectors"]) == (0.1, 0.8, 0.0005, False)
    assert [tuple(parameter.shape) for parameter in group["params"]] == [(3, 4), (3,), (3,)]
    assert isinstance(build_optimizer(read_config(MINI).optim, network), torch.optim.SGD)
    with pytest.raises(UserError, match=r"OPTIM\.NAME 'larz' is unknown; did you mean 'lars'\? \(known: sgd, lars\)"):
        read_config(MINI, ["OPTIM.NAME", "larz"])
