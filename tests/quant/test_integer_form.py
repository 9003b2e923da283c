"""The integers of a small network, compared with formulas written out in NumPy, and schemes that have none."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.integer_network import IMAGE_RANGE, LAYERS, SCHEME, images, make_network, make_points, make_quantization
from support.weight_quantizers import build_weight_quantizer
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import ACTIVATIONS, WEIGHTS, Bits, Quantization, QuantPoint, Scheme, Side
from ssql_det.quant.folding import count_spare_bits
from ssql_det.quant.hooks import recording_outputs
from ssql_det.quant.integer_form import check_integer_scheme, compute_integer_form
from ssql_det.quant.repair import Repair


@pytest.fixture(scope="module")
def quantization():
    return make_quantization()


def to_channels_first(weight, axis):
    return np.moveaxis(weight.detach().numpy(), axis, 0)


def observe_range(network, name):
    with torch.no_grad(), recording_outputs(network, [name]) as outputs:
        network(images())
    return min(float(outputs[0].min()), 0.0), max(float(outputs[0].max()), 0.0)


# ---- formulas


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4), Bits(2, 6), Bits(3, 2)], ids=str)
def test_the_integers_are_those_of_the_formulas(quantization, bits):
    form = compute_integer_form(quantization, bits)
    network, relu = quantization.model, None
    assert [*form.layers] == [name for name, *_ in LAYERS]
    for name, _, axis, _ in LAYERS:
        found, layer = form.layers[name], getattr(network, name)
        # the input's grid
        low, high = IMAGE_RANGE if relu is None else observe_range(network, relu)
        input_scale, relu = (high - low) / (2**bits.act - 1), f"{name}_relu"
        # the weight
        weight = to_channels_first(layer.weight, axis).reshape(layer.weight.shape[axis], -1)
        weight_scale = np.abs(weight).max(1) / ((2**bits.weight - 1) / 2)
        limit = 2 ** (bits.weight - 1)
        with np.errstate(invalid="ignore"):
            integers = np.clip(np.rint(weight / weight_scale[:, None]), -limit, limit - 1)
        integers[weight_scale == 0] = 0
        # the norm
        norm = getattr(network, f"{name}_norm", None)
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()
        factor = np.ones(len(weight))
        if norm is not None:
            gain, shift = (1, 0) if norm.weight is None else (norm.weight.detach().numpy(), norm.bias.detach().numpy())
            factor = gain / np.sqrt(norm.running_var.numpy() + norm.eps)
            bias = shift + (bias - norm.running_mean.numpy()) * factor
        is_dead = factor * weight_scale == 0
        shift_factor = 2.0 ** (8 - bits.weight)
        integers = np.where(is_dead[:, None], 0, integers * shift_factor)
        scale = np.where(is_dead, 1, factor * weight_scale) / shift_factor
        bias_scale = input_scale * np.abs(scale)

        assert found.spare_bits == 8 - bits.weight
        np.testing.assert_array_equal(to_channels_first(found.integers, axis).reshape(len(weight), -1), integers)
        np.testing.assert_allclose(found.scale, scale, rtol=1e-12)
        np.testing.assert_allclose(found.factor, factor, rtol=1e-12)
        np.testing.assert_allclose(found.bias_scale, bias_scale, rtol=1e-12)
        if layer.bias is None and norm is None:
            assert found.bias is None
        else:
            np.testing.assert_allclose(found.bias, np.rint(bias / bias_scale) * bias_scale, rtol=1e-9)


def test_the_network_has_what_the_formulas_are_about(quantization):
    form = compute_integer_form(quantization, Bits(4, 4))
    for name in ("plain", "transposed"):
        assert form.layers[name].factor[0] == 0
        assert form.layers[name].scale[1] < 0
    assert (form.layers["plain"].scale > 0).any()


def test_a_dead_channel_becomes_its_bias(quantization):
    layer = compute_integer_form(quantization, Bits(4, 4)).layers["plain"]
    assert not layer.integers[0].any()
    assert layer.scale[0] == 1 / 2**4
    distance = abs(layer.bias[0] - quantization.model.plain_norm.bias[0])
    assert distance <= layer.bias_scale[0] / 2
    assert layer.bias[0] != 0
    zeros = compute_integer_form(quantization, Bits(4, 4)).layers["biased"]  # whose weights are 0 in channel 2
    assert not zeros.integers[2].any()
    assert abs(zeros.bias[2] - quantization.model.biased.bias[2]) <= zeros.bias_scale[2] / 2


@torch.no_grad()
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(2, 4)], ids=str)
def test_a_layer_in_integers_computes_what_the_simulation_does(quantization, bits):
    network, form = quantization.model, compute_integer_form(quantization, bits)
    paths = [path for name, *_ in LAYERS for path in (name, f"{name}_norm", f"{name}_relu") if hasattr(network, path)]
    inputs, results = {}, {}
    handles = [network.get_submodule(path).register_forward_hook(remember(inputs, results, path)) for path in paths]
    with quantization.at(bits):
        network(images())
    for handle in handles:
        handle.remove()
    for name, *_ in LAYERS:
        layer, integers = getattr(network, name), form.layers[name]
        (grid,) = (grid for point, grid in form.activations.items() if (point.path, point.side) == (name, Side.INPUT))
        x = inputs[name] / grid.scale  # less the zero point, so integers
        torch.testing.assert_close(x, x.round(), rtol=0, atol=1e-9)
        assert (x.round() + grid.zero_point).min() >= 0
        assert 3 < (x.round() + grid.zero_point).max() < 2**bits.act
        sums = compute_sums(layer, integers.integers.double(), x.round())
        channels = (-1,) if name == "linear" else (-1, 1, 1)
        if integers.bias is not None:
            bias = integers.bias / (integers.bias_scale * integers.scale.sign())
            torch.testing.assert_close(bias, bias.round(), rtol=0, atol=1e-6)
            sums = sums + bias.round().reshape(channels)
        scale = (grid.scale * integers.scale).reshape(channels)
        expected = results[f"{name}_norm" if hasattr(network, f"{name}_norm") else name]
        torch.testing.assert_close(sums * scale, expected, rtol=1e-9, atol=1e-9)


def compute_sums(layer, weight, x):
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(x, weight, stride=layer.stride)
    return F.conv2d(x, weight, padding=layer.padding, groups=layer.groups)


def remember(inputs, results, path):
    def hook(module, args, output):
        inputs[path], results[path] = args[0], output.clone()

    return hook


def test_the_bits_of_a_point_and_of_an_override(quantization):
    form = compute_integer_form(quantization, Bits(4, 5), {"biased": Bits(3, 7)})
    widths = {point.key: grid.bits for point, grid in form.activations.items()}
    assert widths.pop("linear:output") == 8
    assert widths.pop("biased:input") == 7
    assert {*widths.values()} == {5}
    assert [form.layers[name].spare_bits for name in ("plain", "biased")] == [4, 5]


def test_layers_without_points_are_left_out():
    points = [point for point in make_points() if point.path != "biased"]
    form = compute_integer_form(make_quantization(points=points), Bits(8, 8))
    assert [*form.layers] == [name for name, *_ in LAYERS if name != "biased"]


def test_a_grid_includes_zero_and_a_relus_begins_with_it(quantization):
    form = compute_integer_form(quantization, Bits(8, 4))
    zero_points = {point.path: grid.zero_point for point, grid in form.activations.items()}
    assert zero_points.pop("plain") == round(2.0 / (4.5 / 15))
    assert 0 < zero_points.pop("linear") < 255
    assert {*zero_points.values()} == {0}


def test_a_bias_beyond_32_bits_makes_its_channel_dead():
    """As a norm's weight decays to 0 while its bias does not: the sum of products is nothing beside the bias."""
    network = make_network()
    network.plain_norm.weight.data[3] = 1e-12
    network.plain_norm.bias.data[3] = -0.7
    quantization = make_quantization(network=network)
    layer = compute_integer_form(quantization, Bits(8, 8)).layers["plain"]
    assert not layer.integers[3].any()
    assert abs(layer.bias[3] + 0.7) <= layer.bias_scale[3] / 2
    assert (layer.bias / layer.bias_scale).abs().max() < 2**30
    with torch.no_grad(), recording_outputs(network, ["plain_norm"]) as outputs:
        network(images())
        with quantization.at(Bits(8, 8)):
            network(images())
    float_outputs, quantized = (each[:, 3] for each in outputs)
    torch.testing.assert_close(quantized, float_outputs, rtol=0, atol=float(layer.bias_scale[3]))


@pytest.mark.parametrize(
    ("integers", "spare"),
    [([-128, 127], 0), ([-64, 63], 1), ([-2, 1], 6), ([-1, 1], 6), ([-1, 0], 7), ([1], 6), ([0], 7), ([-255, 255], 0)],
)
def test_spare_bits(integers, spare):
    integers = torch.tensor(integers, dtype=torch.int16)
    assert count_spare_bits(integers) == spare
    fits = [k for k in range(8) if all(-128 <= each * 2**k <= 127 for each in integers.tolist())]
    assert spare == max(fits, default=0)


# ---- quantizers


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", list(WEIGHTS))
def test_a_weight_quantizer_has_integers_or_is_refused(name, bits):
    quantization = make_quantization(replace(SCHEME, weight=name))
    label, quantizers = str(Bits(bits, 8)), {}
    for point in (each for each in quantization.points if each.is_weight):
        weight = quantization.get_weight(point)
        quantizers[point] = build_weight_quantizer(name, quantization[point].spec, weight, bits)
    quantization.repairs[label] = Repair(quantizers=quantizers, made=quantization.scheme.repairs)
    if name in ("centred", "dorefa") and bits == 8:
        with pytest.raises(UserError, match=rf"plain \(6 such layer.*: weight={name} has 9-bit integers at 8 bits"):
            compute_integer_form(quantization, Bits(8, 8))
        return
    form = compute_integer_form(quantization, Bits(bits, 8))
    for layer_name, _, axis, _ in LAYERS:
        layer, found = getattr(quantization.model, layer_name), form.layers[layer_name]
        assert -128 <= found.integers.min() <= found.integers.max() <= 127
        with torch.no_grad():
            simulated = quantizers[QuantPoint(layer_name, Side.WEIGHT)](layer.weight, bits)
        channels = [-1 if dim == axis else 1 for dim in range(layer.weight.ndim)]
        factor = found.factor.reshape(channels)
        restored = found.integers * found.scale.reshape(channels)
        if hasattr(quantization.model, f"{layer_name}_norm"):
            torch.testing.assert_close(restored, simulated * factor, rtol=1e-14, atol=0)
        else:
            torch.testing.assert_close(restored, simulated, rtol=0, atol=0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_an_activation_quantizer_has_integers(name, bits):
    quantization = make_quantization(replace(SCHEME, act=name))
    form = compute_integer_form(quantization, Bits(8, bits))
    x = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5
    assert len(form.activations) == len(LAYERS) + 1
    for point, grid in form.activations.items():
        width = point.bits or bits
        assert grid.bits == width
        assert 0 <= grid.zero_point < 2**width
        integers = (x / grid.scale).round().add(grid.zero_point).clamp(0, 2**width - 1)
        with torch.no_grad():
            simulated = quantization[point](x, width)
        torch.testing.assert_close((integers - grid.zero_point) * grid.scale, simulated, rtol=0, atol=0)


# ---- refusals


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("minmax", "integers need placement=integer; use --scheme 'placement=integer'"),
        (
            "weight=mse, placement=per-level",
            "integers need placement=integer; use --scheme 'weight=mse, placement=integer'",
        ),
        (
            "placement=integer, equalize=yes",
            "equalized channels have no integer form; leave equalize=yes out",
        ),
    ],
)
def test_a_scheme_without_integers_is_refused(scheme, said):
    with pytest.raises(UserError, match=re.escape(said)):
        check_integer_scheme(Scheme.parse(scheme), [Bits.FP, Bits(8, 8)])
    check_integer_scheme(Scheme.parse(scheme), [Bits.FP])


@pytest.mark.parametrize("bits", [Bits(9, 8), Bits(8, 9), Bits(4, None), Bits(None, 8), Bits(16, 16)], ids=str)
def test_bits_without_integers_are_refused(quantization, bits):
    said = re.escape(f"{bits} has no integer form: weights and activations need 2 to 8 bits")
    with pytest.raises(UserError, match=said):
        compute_integer_form(quantization, bits)
    with pytest.raises(UserError, match=said):
        compute_integer_form(quantization, Bits(8, 8), {"biased": bits})


def test_full_precision_has_no_integers(quantization):
    with pytest.raises(ValueError, match="the float network has no integers"):
        compute_integer_form(quantization, Bits.FP)
    with pytest.raises(UserError, match=r"biased: FP has no integer form"):
        compute_integer_form(quantization, Bits(8, 8), {"biased": Bits.FP})


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("weight=brecq", "needs rounding, which was not learned at 8w8a"),
        ("tune=5", "needs tune, which was not learned at 8w8a"),
        ("norms=matched", "norms and biases are not computed at 8w8a yet; call correct_norms"),
        ("biases=corrected", "norms and biases are not computed at 8w8a yet"),
    ],
)
def test_missing_repairs_are_refused(scheme, said):
    quantization = make_quantization(Scheme.parse(f"{scheme}, placement=integer"))
    with pytest.raises(UserError, match=said):
        compute_integer_form(quantization, Bits(8, 8))


def test_a_quantization_that_was_not_calibrated_is_refused(quantization):
    fresh = Quantization(make_network(), make_points(), SCHEME)
    with pytest.raises(UserError, match="calibrate first"):
        compute_integer_form(fresh, Bits(8, 8))
    with torch.no_grad(), fresh.observing():
        fresh.model(images())
    with pytest.raises(UserError, match="folds the norms that calibrate"):
        compute_integer_form(fresh, Bits(8, 8))


def test_repairs_are_in_the_integers():
    quantization = make_quantization(replace(SCHEME, norms="matched", biases="corrected"))
    quantization.correct_norms(Bits(3, 3), [images()])
    repaired = compute_integer_form(quantization, Bits(3, 3)).layers
    plain = compute_integer_form(make_quantization(), Bits(3, 3)).layers
    tensors = quantization.repairs["3w3a"].tensors
    assert not torch.equal(repaired["plain"].scale, plain["plain"].scale)
    unbiased = repaired["unbiased"]  # whose bias is only there at the width
    assert plain["unbiased"].bias is None
    assert (unbiased.bias - tensors["unbiased.bias"]).abs().le(unbiased.bias_scale / 2).all()


@pytest.mark.parametrize(
    ("dead", "said"),
    [
        ("plain_relu", "depthwise:input had only one value"),
        ("linear", "linear:output had only one value"),
    ],
)
def test_a_dead_activation_is_named(dead, said):
    network = make_network()
    handle = network.get_submodule(dead).register_forward_hook(lambda module, args, output: output * 0)
    quantization = make_quantization(network=network)
    handle.remove()
    with pytest.raises(UserError, match=rf"{said}.*calibrate with more images"):
        compute_integer_form(quantization, Bits(8, 8))


def test_a_quantizer_without_integers_is_named(registries_as_they_were):
    class Nothing(WEIGHTS.get("minmax")):
        def quantize(self, x, bits):
            return None

    class Shifted(WEIGHTS.get("minmax")):
        def quantize(self, x, bits):
            return replace(super().quantize(x, bits), zero_point=torch.ones(()))

    for name, quantizer in (("nothing", Nothing), ("shifted", Shifted)):
        WEIGHTS.register(name)(quantizer)
        with pytest.raises(UserError, match=r"the quantizer of plain:weight gives no integers whose zero point is 0"):
            compute_integer_form(make_quantization(replace(SCHEME, weight=name)), Bits(8, 8))


def test_a_transposed_conv_with_groups_is_named():
    network = make_network()
    network.depthwise = nn.ConvTranspose2d(4, 4, 1, groups=2).double()
    with pytest.raises(UserError, match="depthwise: placement=integer has no transposed convs with groups"):
        compute_integer_form(make_quantization(network=network), Bits(8, 8))
