"""Statistics of a layer against SciPy; errors against quantization written by hand."""

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from ssql_det.analyze.analysis import measure_layers, measure_weight
from ssql_det.backbones import build_backbone
from ssql_det.quant import Bits, parse_bit_widths, quant_points

SAMPLES = {"norm": 0.0, "uniform": -1.2, "laplace": 3.0}  # and their excess kurtosis


@pytest.mark.parametrize("name", SAMPLES)
def test_statistics_equal_scipys(name):
    values = getattr(scipy.stats, name).rvs(size=(40, 20, 3, 3), random_state=0, loc=0.2, scale=1.5)
    result = measure_weight("conv", torch.tensor(values), {})
    assert (result.count, result.minimum, result.maximum) == (7200, values.min(), values.max())
    assert result.std == pytest.approx(values.std(), rel=1e-12)
    assert result.kurtosis == pytest.approx(scipy.stats.kurtosis(values.ravel()), rel=1e-9)
    assert result.kurtosis == pytest.approx(SAMPLES[name], abs=0.6)
    z_scores = np.abs(scipy.stats.zscore(values.ravel()))
    assert result.outliers == np.mean(z_scores > 3)
    assert result.farthest == pytest.approx(z_scores.max(), rel=1e-9)


def test_an_outlier_shows_and_the_scale_does_not_matter():
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-2.5, 2.5)
    normal = measure_weight("a", weight, {})
    assert normal.outliers == 0
    weight[7] = 30.0
    with_outlier = measure_weight("a", weight, {})
    assert with_outlier.outliers == 1 / 1000
    assert with_outlier.farthest > 15
    assert with_outlier.kurtosis > 100
    scaled = measure_weight("a", 1e-3 * weight, {})
    for name in ("kurtosis", "outliers", "farthest"):
        assert getattr(scaled, name) == pytest.approx(getattr(with_outlier, name))


def test_equal_weights_have_no_tails():
    result = measure_weight("a", torch.full((8,), 0.5), {})
    assert (result.std, result.kurtosis, result.outliers, result.farthest) == (0, -3, 0, 0)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return build_backbone("narrow_resnet").module


def error_by_hand(weight, bits):
    """The relative error of quantization per output channel."""
    rows = weight.detach().double().flatten(1).numpy()
    step = np.abs(rows).max(1, keepdims=True) / ((2**bits - 1) / 2)
    quantized = np.clip(np.round(rows / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    return np.linalg.norm(quantized - rows) / np.linalg.norm(rows)


def test_every_conv_has_the_error_of_its_bits(resnet):
    widths = parse_bit_widths("FP,6a,8,4,2w4a")
    result = measure_layers(resnet, quant_points(resnet), widths)
    convs = {name: module for name, module in resnet.named_modules() if isinstance(module, nn.Conv2d)}
    assert [layer.layer for layer in result] == list(convs)
    for layer in result:
        weight = convs[layer.layer].weight
        assert layer.count == weight.numel()
        bits = {width: 8 if layer.layer == "conv1" else width.weight for width in widths[2:]}
        assert layer.errors == {
            width: pytest.approx(error_by_hand(weight, bits[width]), rel=1e-4) for width in widths[2:]
        }


def test_the_network_is_not_changed(resnet):
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    measure_layers(resnet, quant_points(resnet), [Bits(2, 4)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    assert isinstance(resnet.conv1.weight, nn.Parameter)


def test_layers_of_zeros_have_no_error(resnet):
    network = copy.deepcopy(resnet)
    nn.init.zeros_(network.layer1[0].conv2.weight)
    dead = {layer.layer: layer for layer in measure_layers(network, quant_points(network), [Bits(4, 4)])}
    assert dead["layer1.0.conv2"].errors == {Bits(4, 4): 0.0}
