"""What takes hold of a module lets go of it again, in whatever order and way."""

import pytest
import torch
from torch import nn

from ssql_det.quant.taps import OWN, recorded, shadowed


def test_attributes_are_others_inside_and_their_own_again_after():
    layer = nn.Conv2d(2, 3, 1)
    layer.norm = None  # torch keeps this one in the instance dictionary
    weight, bias, other = layer.weight, layer.bias, torch.ones(3, 2, 1, 1)
    with shadowed(layer, weight=other, norm="a norm"):
        assert layer.weight is other
        assert layer.norm == "a norm"
        assert layer.state_dict()["weight"].data_ptr() == weight.data_ptr()
        with shadowed(layer, weight=OWN, bias=None):
            assert layer.weight is weight
            assert layer.bias is None
        assert layer.weight is other
        assert layer.bias is bias
    assert (layer.weight, layer.bias, layer.norm) == (weight, bias, None)


def test_a_failure_lets_go():
    layer = nn.Linear(2, 2)
    weight = layer.weight

    def fail():
        with shadowed(layer, weight=torch.zeros(2, 2)), recorded(layer, [""]):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert layer.weight is weight
    assert not layer._forward_hooks


class Twofold(nn.Module):
    def forward(self, x):
        return {"once": x, "twice": 2 * x}


def test_what_modules_put_out_is_recorded_pass_by_pass_as_it_was_then():
    network = nn.Sequential(nn.ReLU(), Twofold())
    with recorded(network, ["0", "1"]) as seen:
        one = network(torch.ones(2))["once"]
        network(torch.full((2,), 3.0))
        one.fill_(7)
    network(torch.ones(2))
    assert [each.tolist() for each in seen] == [[1, 1], [1, 1], [2, 2], [3, 3], [3, 3], [6, 6]]
