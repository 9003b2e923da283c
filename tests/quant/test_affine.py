"""Quantization arithmetic compared with an element-by-element NumPy implementation, and its gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.reference_quantizer import quantize_activation, quantize_weight

from ssql_det.quant import choose_qparams, fake_quantize, fake_quantize_weight

F = np.float32


def slow_fake_quantize(x, scale, zero, qmin, qmax):
    """Fake-quantize one element, in np.float32 throughout."""
    if scale == 0:
        return x
    q = F(np.rint(F(x / scale))) + zero
    return F(F(min(max(q, F(qmin)), F(qmax))) - zero) * scale


def slow_activation(x, low, high, bits):
    scale = F(F(high - low) / F(2**bits - 1))
    zero = F(0) if scale == 0 else F(-np.rint(F(low / scale)))
    values = [slow_fake_quantize(element, scale, zero, 0, 2**bits - 1) for element in x.ravel()]
    return np.array(values, dtype=F).reshape(x.shape)


def slow_weight(w, bits, axis=0):
    moved = np.moveaxis(w, axis, 0)
    out = np.empty_like(moved)
    for channel, values in enumerate(moved):
        scale = F(max((abs(value) for value in values.ravel()), default=F(0)) / F((2**bits - 1) / 2))
        quantized = [
            slow_fake_quantize(value, scale, F(0), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for value in values.ravel()
        ]
        out[channel] = np.array(quantized, dtype=F).reshape(values.shape)
    return np.moveaxis(out, 0, axis)


def adversarial_tensors():
    """Float32 tensors of shape [5, 4, 3, 2] by name."""
    random = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    zero_channel = random.clone()
    zero_channel[2] = 0
    unequal = random.clone()
    unequal[1] = unequal[1].abs() * 1e-3
    unequal[3] *= 1e4
    return {
        "random": random,
        "zeros": torch.zeros_like(random),
        "zero channel": zero_channel,
        "constant": torch.full_like(random, 0.7),
        "all negative": -random.abs() - 0.1,
        "huge": random * 1e30,
        "tiny": random * 1e-30,
        "subnormal": random * 1e-43,
        "channels of different magnitude": unequal,
        "ties at .5": (random * 4).round() / 2,
        "non-contiguous": torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).permute(3, 2, 1, 0),
        "channels_last": random.contiguous(memory_format=torch.channels_last),
        "strided": torch.randn(10, 4, 3, 4, generator=torch.Generator().manual_seed(2))[::2, :, :, ::2],
    }


@pytest.mark.parametrize("name", adversarial_tensors())
def test_values_equal_the_slow_reference_at_every_width(name):
    x = adversarial_tensors()[name]
    low, high = x.min(), x.max()
    for bits in range(2, 17):
        weight = fake_quantize_weight(x, bits)
        np.testing.assert_array_equal(weight.numpy(), slow_weight(x.numpy(), bits), err_msg=f"weight, {bits} bits")
        transposed = fake_quantize_weight(x, bits, axis=1)
        np.testing.assert_array_equal(transposed.numpy(), slow_weight(x.numpy(), bits, axis=1))
        with np.errstate(over="ignore", invalid="ignore"):
            expected = slow_activation(x.numpy(), F(low), F(high), bits)
        activation = fake_quantize(x, choose_qparams(low, high, bits))
        np.testing.assert_array_equal(activation.numpy(), expected, err_msg=f"activation, {bits} bits")
        # A range observed on other images clips.
        narrow = fake_quantize(x, choose_qparams(low / 2, high / 2, bits))
        np.testing.assert_array_equal(narrow.numpy(), slow_activation(x.numpy(), F(low) / F(2), F(high) / F(2), bits))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3, 2, 2)])
def test_an_empty_tensor_is_returned_unchanged(shape):
    empty = torch.empty(shape)
    assert fake_quantize(empty, choose_qparams(torch.tensor(0.0), torch.tensor(1.0), 4)) is empty
    assert fake_quantize_weight(empty, 4) is empty


def test_an_empty_range_leaves_only_its_own_elements_unchanged():
    constant = choose_qparams(torch.tensor(0.3), torch.tensor(0.3), 4)
    x = torch.randn(7, requires_grad=True)
    y = fake_quantize(x, constant)
    assert torch.equal(y, x)
    y.backward(torch.arange(7.0))
    assert torch.equal(x.grad, torch.arange(7.0))

    weight = torch.randn(3, 5)
    weight[1] = 0
    alone = fake_quantize_weight(weight, 2)
    assert torch.equal(alone[1], weight[1])
    assert not torch.equal(alone[0], weight[0])


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 0, 2, 1),
    "strided": lambda x: x[:, ::2],
    "one image": lambda x: x.reshape(1, 70, 64, 169),
    "one image, channels last": lambda x: x.reshape(1, 70, 64, 169).contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand(70, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_many_blocks_equal_plain_torch_operations(layout):
    x = LAYOUTS[layout](torch.randn(70, 64, 13, 13))  # 2.9 blocks
    qparams = choose_qparams(x.min(), x.max() / 2, 4)
    plain = ((x / qparams.scale).round() + qparams.zero_point).clamp(0, 15) - qparams.zero_point
    assert torch.equal(fake_quantize(x, qparams), plain * qparams.scale)
    with_gradient = fake_quantize(x.detach().requires_grad_(), qparams)
    assert torch.equal(with_gradient, plain * qparams.scale)
    for axis, others in ((0, (1, 2, 3)), (1, (0, 2, 3))):
        scale = x.abs().amax(others, keepdim=True) / 7.5
        assert torch.equal(fake_quantize_weight(x, 4, axis), (x / scale).round().clamp(-8, 7) * scale)


def test_a_tensor_without_dimensions_is_one_element():
    qparams = choose_qparams(torch.tensor(0.0), torch.tensor(3.0), 2)
    assert fake_quantize(torch.tensor(1.4), qparams) == 1


def test_per_channel_activation_ranges():
    x = torch.randn(2, 3, 4, 4)
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    all_channels = fake_quantize(x, choose_qparams(low, high, 3))
    for channel in range(3):
        alone = fake_quantize(x[:, channel], choose_qparams(low[0, channel, 0, 0], high[0, channel, 0, 0], 3))
        assert torch.equal(all_channels[:, channel], alone)


# ---- gradients -------------------------------------------------------------------------------------------------


def expected_activation_gradient(x, low, high, bits, grad):
    """Straight through round, then 1 where the integer lies within the range, else 0."""
    scale = (high - low) / (2**bits - 1)
    integer = np.rint(x / scale) - np.rint(low / scale)
    return grad * ((integer >= 0) & (integer <= 2**bits - 1))


def expected_weight_gradient(w, bits, grad):
    """Also through the scale, that is, through the largest element of each channel."""
    out = np.empty_like(w)
    for c, (values, g) in enumerate(zip(w, grad, strict=True)):
        bound = np.abs(values).max()
        scale = bound / ((2**bits - 1) / 2)
        integer = np.rint(values / scale)
        in_range = (integer >= -(2 ** (bits - 1))) & (integer <= 2 ** (bits - 1) - 1)
        clamped = np.clip(integer, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        grad_scale = (g * (clamped - in_range * values / scale)).sum()
        out[c] = g * in_range
        largest = np.unravel_index(np.abs(values).argmax(), values.shape)
        out[c][largest] += grad_scale * np.sign(values[largest]) / ((2**bits - 1) / 2)
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_activation_gradient_is_that_of_clamping_the_rounded_integer(bits):
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    low, high = x.detach().min() / 2, x.detach().max() / 3
    grad = torch.randn_like(x)
    fake_quantize(x, choose_qparams(low, high, bits)).backward(grad)
    expected = expected_activation_gradient(x.detach().numpy(), low.item(), high.item(), bits, grad.numpy())
    np.testing.assert_array_equal(x.grad.numpy(), expected)
    assert 0 < (x.grad == 0).sum() < x.numel()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_weight_gradient_flows_through_the_scale(bits):
    w = torch.randn(8, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(w)
    fake_quantize_weight(w, bits).backward(grad)
    expected = expected_weight_gradient(w.detach().numpy(), bits, grad.numpy())
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_weight_gradient_equals_that_of_plain_torch_operations():
    w = torch.randn(8, 12, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(w)
    fake_quantize_weight(w, 3).backward(grad)

    plain = w.detach().clone().requires_grad_()
    quantize_weight(plain, 3).backward(grad)
    assert (w.grad - plain.grad).abs().max() <= 1e-9 * plain.grad.abs().max()


def test_the_gradient_of_a_zero_channel_is_unchanged():
    w = torch.randn(3, 4, dtype=torch.float64)
    w[1] = 0
    w.requires_grad_()
    grad = torch.randn_like(w)
    fake_quantize_weight(w, 4).backward(grad)
    assert torch.equal(w.grad[1], grad[1])
    assert w.grad.isfinite().all()


def test_a_learned_scalar_scale_gets_its_gradient():
    x = torch.randn(50, dtype=torch.float64)
    high = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    low = torch.tensor(-1.0, dtype=torch.float64)
    fake_quantize(x, choose_qparams(low, high, 3)).sum().backward()

    plain = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    quantize_activation(x, low, plain, 3).sum().backward()
    assert math.isclose(high.grad.item(), plain.grad.item(), rel_tol=1e-9)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_of_a_scale_is_computed_in_float32(dtype, bits):
    x = torch.randn(500).to(dtype)
    gradients = []
    for values in (x, x.float()):
        qparams = choose_qparams(x.float().min(), x.float().max(), bits)
        qparams.scale.requires_grad_()
        output = fake_quantize(values, qparams)
        gradients.append(torch.autograd.grad(output, qparams.scale, torch.sign(values)))
    torch.testing.assert_close(*gradients)


def test_at_most_one_byte_per_element_is_saved_for_the_backward_pass():
    x = torch.randn(64, 32, 8, 8, requires_grad=True)
    qparams = choose_qparams(x.detach().min(), x.detach().max(), 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        fake_quantize(x, qparams)
    assert sum(tensor.numel() * tensor.element_size() for tensor in saved) <= x.numel() + 16


# ---- dtypes and layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype):
    x = torch.randn(4, 5).to(dtype)
    qparams = choose_qparams(x.float().min(), x.float().max(), 8)
    y = fake_quantize(x, qparams)
    assert y.dtype is dtype
    assert torch.equal(y, fake_quantize(x.float(), qparams).to(dtype))


def test_float64_stays_float64():
    x = torch.randn(100, dtype=torch.float64)
    qparams = choose_qparams(x.min(), x.max(), 16)
    y = fake_quantize(x, qparams)
    assert y.dtype is torch.float64
    assert not torch.equal(y, fake_quantize(x.float(), choose_qparams(x.min().float(), x.max().float(), 16)).double())


def test_channels_last_stays_channels_last():
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    y = fake_quantize(x, choose_qparams(x.min(), x.max(), 4))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_equals_the_cpu():
    x = torch.randn(64, 33, 5, 5)
    qparams = choose_qparams(x.min(), x.max(), 5)  # on the CPU, as read from a file
    assert torch.equal(fake_quantize(x.cuda(), qparams).cpu(), fake_quantize(x, qparams))
    assert torch.equal(fake_quantize_weight(x.cuda(), 5).cpu(), fake_quantize_weight(x, 5))


# ---- properties ------------------------------------------------------------------------------------------------

MODERATE = st.floats(-1e4, 1e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-4)
VECTORS = hnp.arrays(F, st.integers(1, 40), elements=MODERATE)
BITS = st.integers(2, 16)
many = settings(max_examples=150, deadline=None)


def make_qparams(values, bits):
    x = torch.from_numpy(values)
    return x, choose_qparams(x.min(), x.max(), bits)


@many
@given(VECTORS, BITS)
def test_quantizing_twice_changes_nothing(values, bits):
    x, qparams = make_qparams(values, bits)
    once = fake_quantize(x, qparams)
    assert torch.equal(fake_quantize(once, qparams), once)


@many
@given(BITS, st.integers(-100, 100), st.floats(2**-20, 2**10, width=32))
def test_every_grid_point_is_a_fixed_point(bits, first, scale):
    steps = 2**bits - 1
    integers = torch.arange(first, first + steps + 1, dtype=torch.float32)
    points = integers * torch.tensor(scale)
    qparams = choose_qparams(points[0], points[-1], bits)
    quantized = fake_quantize(points, qparams)
    assert quantized.unique().numel() == points.unique().numel()
    torch.testing.assert_close(quantized, points, rtol=1e-5, atol=scale * 1e-2)
    assert torch.equal(fake_quantize(quantized, qparams), quantized)


@many
@given(VECTORS, BITS)
def test_fake_quantization_is_monotone(values, bits):
    x, qparams = make_qparams(np.sort(values), bits)
    assert (fake_quantize(x, qparams).diff() >= 0).all()


@many
@given(VECTORS, BITS)
def test_error_is_at_most_half_a_scale_inside_the_range(values, bits):
    x, qparams = make_qparams(values, bits)
    error = (fake_quantize(x, qparams).double() - x.double()).abs()
    # Three float32 roundings: of x / s, of (q - z) * s, and that of z, which can shift the range and affects its ends.
    rounding = 4 * torch.finfo(torch.float32).eps * x.double().abs().max()
    is_end = torch.isin(x, torch.stack([x.min(), x.max()]))
    limit = torch.where(is_end, 1.0, 0.5) * qparams.scale.double() + rounding
    assert (error <= limit).all()


@many
@given(VECTORS, BITS)
def test_weight_error_is_at_most_half_a_scale(values, bits):
    weight = torch.from_numpy(values)[None]
    scale = weight.double().abs().max() / ((2**bits - 1) / 2)
    error = (fake_quantize_weight(weight, bits).double() - weight.double()).abs()
    rounding = 4 * torch.finfo(torch.float32).eps * weight.double().abs().max()
    assert (error <= scale / 2 + rounding).all()


@many
@given(hnp.arrays(F, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=MODERATE), BITS, st.randoms())
def test_permuting_channels_permutes_the_result(values, bits, random):
    weight = torch.from_numpy(values)
    order = list(range(len(weight)))
    random.shuffle(order)
    assert torch.equal(fake_quantize_weight(weight[order], bits), fake_quantize_weight(weight, bits)[order])
