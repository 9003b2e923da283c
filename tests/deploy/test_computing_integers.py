"""A network whose layers were replaced by integers computes in torch what the simulation does."""

import copy
from dataclasses import replace

import pytest
import torch
from support.integer_network import LAYERS, SCHEME, images, make_network, make_points
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.deploy.integers import computing_integers
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.integer_form import compute_integer_form


def make_float32_quantization(network=None, scheme=SCHEME, points=None):
    network = (network or make_network()).float()
    quantization = Quantization(network, make_points() if points is None else points, scheme)
    quantization.calibrate([images().float()])
    return quantization


def compute(quantization, bits):
    """The outputs of the simulation and of the integers, and the keys of the latter."""
    form = compute_integer_form(quantization, bits)
    replaced = copy.deepcopy(quantization.model)
    with torch.no_grad(), computing_integers(replaced, form) as keys:
        found = replaced(images(seed=1).float())
    with torch.no_grad(), quantization.at(bits):
        expected = quantization.model(images(seed=1).float())
    return found, expected, keys


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4), Bits(2, 4)], ids=str)
def test_layers_of_every_kind(bits):
    quantization = make_float32_quantization()
    state = copy.deepcopy(quantization.model.state_dict())
    found, expected, keys = compute(quantization, bits)
    assert expected.unique().numel() > 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    transposed = [name for name, *_ in LAYERS].index("transposed")
    points = [f"{name}:input" for name, *_ in LAYERS] + ["linear:output"]
    # The result of the transposed conv is quantized before the shuffle, and then by its own point.
    assert keys == [*points[: transposed + 1], "", *points[transposed + 1 :]]
    torch.testing.assert_close(dict(quantization.model.state_dict()), dict(state), rtol=0, atol=0)


def test_replaced_layers_hold_integers_and_no_float_weights():
    quantization = make_float32_quantization()
    replaced = copy.deepcopy(quantization.model)
    with computing_integers(replaced, compute_integer_form(quantization, Bits(4, 4))):
        pass
    for name, _, _, norm in LAYERS:
        layer = getattr(replaced, name)
        assert layer.integers.dtype == torch.int8
        assert layer.weight is None
        assert layer.bias_integers is None if name == "unbiased" else layer.bias_integers.dtype == torch.int32
        if norm is not None:
            assert isinstance(getattr(replaced, f"{name}_norm"), nn.Identity)
    assert not list(replaced.parameters())


def test_a_bias_of_integers_has_the_unit_of_the_products():
    """Also where a norm's weight is negative, so that the scale of the weight is."""
    quantization = make_float32_quantization()
    form = compute_integer_form(quantization, Bits(4, 4))
    replaced = copy.deepcopy(quantization.model)
    with computing_integers(replaced, form):
        pass
    (grid,) = (grid for point, grid in form.activations.items() if point.key == "plain:input")
    layer = replaced.plain
    torch.testing.assert_close(layer.bias_scale, grid.scale * layer.scale)
    assert layer.scale[1] < 0
    torch.testing.assert_close(layer.bias_integers * layer.bias_scale, form.layers["plain"].bias)


@pytest.mark.parametrize("scheme", ["norms=matched", "norms=re-estimated", "norms=matched, biases=corrected"])
def test_repaired_norms_and_biases_of_layers_that_stay_float(scheme):
    points = [point for point in make_points() if point.path not in ("biased", "transposed")]
    scheme = replace(SCHEME, **dict(part.split("=") for part in scheme.split(", ")))
    quantization = make_float32_quantization(scheme=scheme, points=points)
    quantization.correct_norms(Bits(3, 3), [images().float()])
    tensors = quantization.repairs["3w3a"].tensors
    assert "transposed_norm.running_mean" in tensors
    found, expected, _ = compute(quantization, Bits(3, 3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 2, "output_padding": 1},
        {"kernel_size": (2, 3), "stride": (2, 3)},
        {"kernel_size": 2, "stride": 2, "dilation": 2},
    ],
    ids=str,
)
def test_a_transposed_conv_that_is_no_shuffle_is_named(options):
    network = nn.Sequential(nn.ConvTranspose2d(2, 4, **options)).double().eval()
    points = [replace(point, path="0", fixed_range=(-1.0, 1.0)) for point in make_points() if point.path == "plain"]
    quantization = Quantization(network, points, SCHEME)
    quantization.calibrate([images()[:, :2]])
    form = compute_integer_form(quantization, Bits(8, 8))
    said = "0: a transposed conv has integers only if its kernel is as large as its stride"
    with pytest.raises(UserError, match=said), computing_integers(copy.deepcopy(network), form):
        pass


def test_the_result_of_a_transposed_conv_is_quantized_first_only_if_its_activation_keeps_the_grid():
    network = make_network()
    network.transposed_relu = nn.SiLU()
    quantization = make_float32_quantization(network)
    found, expected, keys = compute(quantization, Bits(8, 8))
    assert "" not in keys
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
