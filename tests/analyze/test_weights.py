"""Figures of a layer against another implementation's; errors against the rule written out."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from ssql_det.analyze.analysis import described, layer_weights
from ssql_det.backbones import build_backbone
from ssql_det.quant import Bits, parse_widths, quant_points

SAMPLES = {"norm": 0.0, "uniform": -1.2, "laplace": 3.0}  # and their excess kurtosis


@pytest.mark.parametrize("name", SAMPLES)
def test_figures_are_another_implementations(name):
    values = getattr(scipy.stats, name).rvs(size=(40, 20, 3, 3), random_state=0, loc=0.2, scale=1.5)
    found = described("conv", torch.tensor(values), {})
    assert (found.count, found.low, found.high) == (7200, values.min(), values.max())
    assert found.deviation == pytest.approx(values.std(), rel=1e-12)
    assert found.kurtosis == pytest.approx(scipy.stats.kurtosis(values.ravel()), rel=1e-9)
    assert found.kurtosis == pytest.approx(SAMPLES[name], abs=0.6)
    steps = np.abs(scipy.stats.zscore(values.ravel()))
    assert found.outliers == np.mean(steps > 3)
    assert found.farthest == pytest.approx(steps.max(), rel=1e-9)


def test_one_far_weight_is_seen_and_scale_is_not():
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-2.5, 2.5)
    plain = described("a", weight, {})
    assert plain.outliers == 0
    weight[7] = 30.0
    far = described("a", weight, {})
    assert far.outliers == 1 / 1000
    assert far.farthest > 15
    assert far.kurtosis > 100
    scaled = described("a", 1e-3 * weight, {})
    for name in ("kurtosis", "outliers", "farthest"):
        assert getattr(scaled, name) == pytest.approx(getattr(far, name))


def test_equal_weights_have_no_tails():
    found = described("a", torch.full((8,), 0.5), {})
    assert (found.deviation, found.kurtosis, found.outliers, found.farthest) == (0, -3, 0, 0)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return build_backbone("narrow_resnet").module


def by_hand(weight, bits):
    """The norm of what rounding per output channel moves, over the weight's."""
    rows = weight.detach().double().flatten(1).numpy()
    step = np.abs(rows).max(1, keepdims=True) / ((2**bits - 1) / 2)
    rounded = np.clip(np.round(rows / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    return np.linalg.norm(rounded - rows) / np.linalg.norm(rows)


def test_every_conv_has_the_error_of_its_own_bits(resnet):
    widths = parse_widths("FP,6a,8,4,2w4a")
    found = layer_weights(resnet, quant_points(resnet), widths)
    convs = {name: module for name, module in resnet.named_modules() if isinstance(module, nn.Conv2d)}
    assert [layer.layer for layer in found] == list(convs)
    for layer in found:
        weight = convs[layer.layer].weight
        assert layer.count == weight.numel()
        bits = {width: 8 if layer.layer == "conv1" else width.weight for width in widths[2:]}
        assert layer.errors == {width: pytest.approx(by_hand(weight, bits[width]), rel=1e-4) for width in widths[2:]}


def test_the_network_stays_as_it_was(resnet):
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    layer_weights(resnet, quant_points(resnet), [Bits(2, 4)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    assert isinstance(resnet.conv1.weight, nn.Parameter)


def test_dead_layers_have_no_error(resnet):
    network = copy.deepcopy(resnet)
    nn.init.zeros_(network.layer1[0].conv2.weight)
    dead = {layer.layer: layer for layer in layer_weights(network, quant_points(network), [Bits(4, 4)])}
    assert dead["layer1.0.conv2"].errors == {Bits(4, 4): 0.0}
