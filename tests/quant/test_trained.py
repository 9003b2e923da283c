"""``pact``, ``dorefa`` and the weights of ``lsq`` against the formulas of their papers in NumPy; where they start."""

import copy

import numpy as np
import pytest
import torch

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme, Side
from ssql_det.quant.quantizers import TensorSpec
from ssql_det.quant.quantizers.dorefa import DorefaWeight
from ssql_det.quant.quantizers.lsq import LsqWeight
from ssql_det.quant.quantizers.pact import PactActivation

ACT = TensorSpec(QuantPoint("relu", Side.OUTPUT))
SHAPE = (6, 3, 3, 3)
WEIGHT = TensorSpec(QuantPoint("conv", Side.WEIGHT), SHAPE, axis=0)


def make(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) ** 3


def run(quantizer, x, bits):
    """Output, gradient of ``x`` and the upstream gradient, for a random upstream gradient."""
    tensor, upstream = torch.tensor(x, requires_grad=True), make(*x.shape, seed=1)
    output = quantizer(tensor, bits)
    output.backward(torch.tensor(upstream))
    return output.detach().numpy(), tensor.grad.numpy(), upstream


def observed(x, **arguments):
    quantizer = PactActivation(ACT, **arguments)
    quantizer.observer.update(torch.tensor(x))
    return quantizer


# ---- PACT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pact_equals_its_paper_after_a_relu(bits):
    x, clip = np.maximum(make(4000), 0), 1.5
    quantizer = observed(x, start=clip)
    output, grad_x, upstream = run(quantizer, np.append(x, [-0.1, clip]), bits)
    x = np.append(x, [-0.1, clip])
    clipped = 0.5 * (np.abs(x) - np.abs(x - clip) + clip)  # eq. 1
    levels = 2**bits - 1
    np.testing.assert_allclose(output, np.round(clipped * levels / clip) * clip / levels, rtol=1e-12)  # eq. 2
    np.testing.assert_array_equal(grad_x, np.where((x >= 0) & (x < clip), upstream, 0))
    expected = upstream[x >= clip].sum()  # eq. 3
    assert (x >= clip).sum() > 100
    np.testing.assert_allclose(quantizer.trained[bits - 2].grad.item(), expected, rtol=1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pact_of_a_signed_tensor_is_its_mirror_image(bits):
    x, clip = make(4000), 1.5
    quantizer = observed(x, start=clip)
    output, grad_x, upstream = run(quantizer, x, bits)
    scale = 2 * clip / (2**bits - 1)
    zero = np.round(clip / scale)
    np.testing.assert_allclose(output, (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale, rtol=1e-12)
    np.testing.assert_array_equal(grad_x, np.where(np.abs(x) < clip, upstream, 0))
    expected = upstream[x >= clip].sum() - upstream[x <= -clip].sum()
    np.testing.assert_allclose(quantizer.trained[bits - 2].grad.item(), expected, rtol=1e-12)


def test_the_clip_starts_where_it_is_said_else_at_the_largest_magnitude():
    x = torch.tensor([-3.0, 2.0])
    for arguments, expected in (({}, 3.0), ({"start": 10.0}, 10.0)):
        quantizer = observed(x.numpy(), **arguments)
        quantizer(x, 4)
        assert quantizer.trained[2] == expected
    with pytest.raises(UserError, match="the clip of pact must start above 0, as in pact:10; got -1"):
        Scheme.parse("act=pact:-1")
    assert str(Scheme.parse("weight=dorefa, act=pact:10.0")) == "weight=dorefa, act=pact:10"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pact_computes_in_float32(dtype):
    x = torch.tensor(make(500)).to(dtype).requires_grad_()
    quantizer = observed(x.detach().double().numpy())
    output = quantizer(x, 4)
    assert output.dtype is x.dtype
    assert torch.equal(output, quantizer(x.detach().float(), 4).to(dtype))
    output.sum().backward()
    assert quantizer.trained[2].grad.isfinite()


def test_a_tensor_of_zeros_stays_as_it_is():
    quantizer, x = observed(np.zeros(4)), torch.tensor([0.0, 0.5], requires_grad=True)
    quantizer(x, 4).sum().backward()
    assert x.grad.tolist() == [1, 1]
    assert quantizer.trained[2].grad == 0


# ---- DoReFa ----------------------------------------------------------------------------------------------------------


def dorefa_unrounded(weight):
    limited = np.tanh(weight)
    return limited / (2 * np.abs(limited).max()) + 0.5


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_dorefa_equals_its_paper_times_the_largest_magnitude(bits):
    weight, levels = make(*SHAPE), 2**bits - 1
    output, grad, upstream = run(DorefaWeight(WEIGHT), weight, bits)
    factor = np.abs(weight).max()
    expected = factor * (2 * np.round(levels * dorefa_unrounded(weight)) / levels - 1)
    np.testing.assert_allclose(output, expected, rtol=1e-12)
    # The gradient of the formula without rounding, by differences.
    for index in np.ndindex(SHAPE):
        step = np.zeros(SHAPE)
        step[index] = 1e-6
        change = dorefa_unrounded(weight + step) - dorefa_unrounded(weight - step)
        np.testing.assert_allclose(grad[index], factor * 2 * (change * upstream).sum() / 2e-6, rtol=1e-5, atol=1e-7)


def test_a_norm_cancels_the_factor_of_dorefa():
    weight = torch.tensor(make(*SHAPE), requires_grad=True)
    x, upstream = torch.tensor(make(4, 3, 8, 8, seed=2)), torch.tensor(make(4, 6, 6, 6, seed=3))
    quantized = DorefaWeight(WEIGHT)(weight, 3)
    gradients = []
    for each in (quantized, quantized / weight.detach().abs().max()):  # ours, and the paper's
        normed = torch.nn.functional.batch_norm(torch.conv2d(x, each), None, None, training=True, eps=1e-14)
        gradients.append(torch.autograd.grad(normed, weight, upstream, retain_graph=True)[0])
    torch.testing.assert_close(*gradients)


def test_dorefa_keeps_a_weight_of_zeros():
    output, grad, _ = run(DorefaWeight(WEIGHT), np.zeros(SHAPE), 4)
    assert not output.any()
    assert np.isfinite(grad).all()


# ---- LSQ, weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_of_a_weight_equals_its_paper(bits):
    weight, quantizer = make(*SHAPE), LsqWeight(WEIGHT)
    quantizer(torch.tensor(weight), bits)
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = 2 * np.abs(weight).mean((1, 2, 3), keepdims=True) / np.sqrt(qmax)
    np.testing.assert_allclose(quantizer.trained[bits - 2].detach().numpy(), step, rtol=1e-12)
    step = 0.4 * step  # as training may make it, so that more elements are clipped
    quantizer.trained[bits - 2].data.copy_(torch.tensor(step))
    output, grad, upstream = run(quantizer, weight, bits)
    ratio = weight / step
    np.testing.assert_allclose(output, np.clip(np.round(ratio), qmin, qmax) * step, rtol=1e-12)
    in_range = (np.round(ratio) >= qmin) & (np.round(ratio) <= qmax)
    np.testing.assert_array_equal(grad, np.where(in_range, upstream, 0))
    slope = np.where(in_range, np.round(ratio) - ratio, np.where(ratio < 0, qmin, qmax))  # eq. 3
    expected = (slope * upstream).sum((1, 2, 3), keepdims=True) / np.sqrt(27 * qmax)  # 27 elements share a step
    np.testing.assert_allclose(quantizer.trained[bits - 2].grad.numpy(), expected, rtol=1e-9)
    assert [each.grad for each in quantizer.trained].count(None) == 6


def test_all_steps_of_a_weight_start_from_the_first_one():
    first, later = torch.tensor(make(*SHAPE)), torch.tensor(make(*SHAPE, seed=1))
    quantizer, expected = LsqWeight(WEIGHT), LsqWeight(WEIGHT)
    quantizer(first, 4)
    assert torch.equal(quantizer(later, 3), expected_after(expected, first, later, 3))
    loaded = LsqWeight(WEIGHT)
    loaded.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    assert torch.equal(loaded(later, 5), quantizer(later, 5))


def expected_after(quantizer, first, later, bits):
    quantizer(first, bits)
    return quantizer(later, bits)


def test_a_transposed_conv_has_a_step_for_each_channel_of_its_axis_1():
    weight = torch.tensor(make(*SHAPE))
    swapped = LsqWeight(TensorSpec(QuantPoint("deconv", Side.WEIGHT), (3, 6, 3, 3), axis=1))
    assert torch.equal(swapped(weight.transpose(0, 1), 3), LsqWeight(WEIGHT)(weight, 3).transpose(0, 1))
    assert swapped.trained[1].shape == (1, 6, 1, 1)


# ---- in a network ----------------------------------------------------------------------------------------------------


def make_quantization(scheme):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(3)))
    return Quantization(model, scheme=Scheme.parse(scheme)), torch.randn(2, 3, 4, 4)


def observe(quantization, images, **options):
    with quantization.observing(**options), torch.no_grad():
        quantization.model(images)


@pytest.mark.parametrize("scheme", ["lsq", "weight=dorefa, act=pact"])
def test_training_observes_the_first_pass_alone(scheme):
    quantization, images = make_quantization(scheme)
    assert quantization.needs_observation
    observe(quantization, images, restart=False)
    assert not quantization.needs_observation
    point = next(point for point in quantization.points if not point.is_weight)
    started = quantization[point].observer
    observe(quantization, 3 * images, restart=False)
    assert quantization[point].observer is started
    trained = quantization[point]
    with quantization.at(Bits(4, 4)):
        quantization.model(images).sum().backward()
    with torch.no_grad():
        trained.trained[2].mul_(1.5)
    kept, initial = trained.trained[2].item(), trained.initial.clone()
    with quantization.at(Bits(4, 5)):  # a bit-width that is used for the first time later
        quantization.model(images)
    assert trained.trained[2].item() == kept
    assert trained.initial[3].item() == trained.trained[3].item()
    observe(quantization, 3 * images)  # as a calibration does
    assert quantization[point].observer is not started
    with quantization.at(Bits(4, 4)):
        quantization.model(images)
    assert trained.initial[2] > initial[2]


def test_other_quantizers_observe_every_pass():
    quantization, images = make_quantization("weight=lsq, act=minmax")
    point = next(point for point in quantization.points if not point.is_weight)
    observe(quantization, images, restart=False)
    first = quantization[point].observer
    assert quantization.needs_observation
    observe(quantization, 3 * images, restart=False)
    assert quantization[point].observer is not first


@pytest.mark.parametrize("scheme", ["lsq", "weight=dorefa, act=pact:2"])
def test_a_file_keeps_what_was_trained(scheme, tmp_path):
    quantization, images = make_quantization(scheme)
    quantization.calibrate([images])
    with quantization.at(Bits(3, 3)), torch.no_grad():
        quantization.model(images)
    for parameter in quantization.quantizers.parameters():
        parameter.data.mul_(1.25)
    quantization.save(tmp_path / "q.safetensors")
    loaded = Quantization.load(tmp_path / "q.safetensors", quantization.model)
    for bits in (Bits(3, 3), Bits(4, 5)):
        outputs = []
        for each in (quantization, loaded):
            with each.at(bits), torch.no_grad():
                outputs.append(each.model(images))
        assert torch.equal(*outputs)
