"""Contexts that change a module restore it, in any order and after errors."""

import pytest
import torch
from torch import nn

from ssql_det.quant import QuantPoint, Side
from ssql_det.quant.hooks import hooking, overriding_attributes, recording_outputs

WEIGHT = QuantPoint("0", Side.WEIGHT)


def test_overridden_attributes_are_restored():
    layer = nn.Conv2d(2, 3, 1)
    layer.norm = None  # torch keeps this one in the instance dictionary
    weight, bias, other = layer.weight, layer.bias, torch.ones(3, 2, 1, 1)
    with overriding_attributes(layer, weight=other, norm="a norm"):
        assert layer.weight is other
        assert layer.norm == "a norm"
        assert layer.state_dict()["weight"].data_ptr() == weight.data_ptr()
        with overriding_attributes(layer, weight=weight, bias=None):
            assert layer.weight is weight
            assert layer.bias is None
        assert layer.weight is other
        assert layer.bias is bias
    assert (layer.weight, layer.bias, layer.norm) == (weight, bias, None)


def test_a_hooked_weight_is_computed_from_the_parameter_by_the_innermost_context():
    network = nn.Sequential(nn.Linear(2, 2))
    weight, x = network[0].weight, torch.ones(1, 2)
    with hooking(network, WEIGHT, lambda parameter: 2 * parameter):
        assert torch.equal(network[0].weight, 2 * weight)
        with hooking(network, WEIGHT, lambda parameter: 3 * parameter):
            assert torch.equal(network[0].weight, 3 * weight)  # not six times: the action gets the parameter
        assert torch.equal(network[0].weight, 2 * weight)
        with hooking(network, WEIGHT, None):
            assert network[0].weight is weight
        with overriding_attributes(network[0], weight=torch.zeros(2, 2)):
            assert torch.equal(network(x)[0], network[0].bias)
        assert torch.equal(network(x), x @ (2 * weight).T + network[0].bias)
    assert network[0].weight is weight
    assert not network[0]._forward_pre_hooks


def test_a_failing_action_leaves_the_module_unchanged():
    network = nn.Sequential(nn.Linear(2, 2))
    weight = network[0].weight
    with pytest.raises(ZeroDivisionError), hooking(network, WEIGHT, lambda parameter: 1 / 0):
        pass
    with hooking(network, WEIGHT, lambda parameter: 2 * parameter):
        with pytest.raises(ZeroDivisionError), hooking(network, WEIGHT, lambda parameter: 1 / 0):
            pass
        assert torch.equal(network[0].weight, 2 * weight)
    assert network[0].weight is weight
    assert not network[0]._forward_pre_hooks


def test_contexts_are_left_after_an_error():
    layer = nn.Linear(2, 2)
    weight = layer.weight

    def fail():
        with overriding_attributes(layer, weight=torch.zeros(2, 2)), recording_outputs(layer, [""]):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert layer.weight is weight
    assert not layer._forward_hooks


class DictOutput(nn.Module):
    def forward(self, x):
        return {"once": x, "twice": 2 * x}


def test_outputs_are_recorded_as_copies_pass_by_pass():
    network = nn.Sequential(nn.ReLU(), DictOutput())
    with recording_outputs(network, ["0", "1"]) as outputs:
        output = network(torch.ones(2))["once"]
        network(torch.full((2,), 3.0))
        output.fill_(7)
    network(torch.ones(2))
    assert [each.tolist() for each in outputs] == [[1, 1], [1, 1], [2, 2], [3, 3], [3, 3], [6, 6]]
