"""``lsq`` compared with ``mse`` and with the formulas of its source; its steps through files and new observations."""

import copy
import math

import pytest
import torch

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, Quantization, QuantPoint, Scheme, Side, choose_qparams, fake_quantize
from ssql_det.quant.quantizers import TensorSpec
from ssql_det.quant.quantizers.lsq import LsqActivation
from ssql_det.quant.quantizers.mse import MseActivation

POINTS = {
    "plain": QuantPoint("relu", Side.OUTPUT),
    "with zero": QuantPoint("relu", Side.OUTPUT, include_zero=True),
    "fixed": QuantPoint("stem", Side.INPUT, fixed_range=(-2.0, 2.5)),
}


def make_values(seed=0, size=4000):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


KINDS = {
    "signed": lambda: make_values(),
    "after a ReLU": lambda: make_values().relu(),
    "away": lambda: 9 + make_values(),
}


def calibrated(x, kind=LsqActivation, point="plain", **values):
    quantizer = kind(TensorSpec(POINTS[point]), **values)
    quantizer.observer.update(x)
    return quantizer


def trained(x=None):
    """Steps of two bit-widths, 1.5 and 0.75 times their initial values."""
    quantizer = calibrated(make_values().float() if x is None else x)
    for bits, factor in ((4, 1.5), (7, 0.75)):
        quantizer.get_qparams(bits)
        with torch.no_grad():
            quantizer.trained[bits - 2] *= factor
    return quantizer


def scale_at(quantizer, bits):
    return quantizer.get_qparams(bits).scale.item()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_before_training_it_equals_mse_to_the_last_bit(make, point, dtype):
    x = make().to(dtype)
    lsq, mse = (calibrated(0.9 * x, kind, point, exponent=2.4) for kind in (LsqActivation, MseActivation))
    assert lsq.supported_bits == range(2, 11)
    for bits in lsq.supported_bits:
        found, expected = lsq(x, bits), mse(x, bits)
        assert found.dtype is dtype
        assert torch.equal(found, expected)
        assert lsq.quantize(x, bits).scale.dtype is mse.quantize(x, bits).scale.dtype
        if x.min() == 0 and point == "plain":
            assert lsq.get_qparams(bits).zero_point == 0


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_gradients_are_those_of_the_source(make, bits):
    """Element by element, with Python's floats."""
    quantizer = calibrated(make())
    initial = scale_at(quantizer, bits)
    with torch.no_grad():
        quantizer.trained[bits - 2] *= 0.3  # more elements lie outside
    x, grad = make()[:500].requires_grad_(), make_values(1, 500)
    output = quantizer(x, bits)
    output.backward(grad)
    step, zero, qmax = 0.3 * initial, int(quantizer.zero_points[bits - 2]), 2**bits - 1
    total, passes = 0.0, []
    for value, upstream in zip(x.tolist(), grad.tolist(), strict=True):
        integer = round(value / step) + zero
        passes.append(0 <= integer <= qmax)
        slope = -zero if integer < 0 else qmax - zero if integer > qmax else round(value / step) - value / step
        total += upstream * slope
    assert torch.equal(x.grad, torch.where(torch.tensor(passes), grad, 0))
    assert 0 < sum(passes) < 500
    # 4000 elements were observed: the factor does not depend on how many are quantized.
    expected = torch.tensor(total / math.sqrt(4000 * qmax), dtype=torch.float64)
    torch.testing.assert_close(quantizer.trained[bits - 2].grad, expected, rtol=1e-12, atol=1e-12)
    assert [step.grad for step in quantizer.trained].count(None) == 8  # the other bit-widths have no gradient
    # The factor of the gradient does not change the value.
    assert torch.equal(output, fake_quantize(x.detach(), quantizer.get_qparams(bits)))


def test_integers_stand_for_the_result_after_training():
    x = make_values().float()
    quantizer = trained(x)
    for bits in (4, 7):
        quantized = quantizer.quantize(x, bits)
        assert not quantized.scale.requires_grad
        assert torch.equal(quantized.dequantize(), quantizer(x, bits))


@pytest.mark.parametrize(("step", "slope"), [(1e-9, 1), (0.0, 1), (-1e-9, -1), (-2.0, -1)])
def test_a_step_stays_positive_and_can_grow_again(step, slope):
    x = make_values()
    quantizer = calibrated(x)
    initial = scale_at(quantizer, 4)
    with torch.no_grad():
        quantizer.trained[2].fill_(step)
    qparams = quantizer.get_qparams(4)
    assert qparams.scale.item() == max(abs(step), initial / 1024)
    learned = qparams.scale.detach().requires_grad_()
    scaled = choose_qparams(learned * 0, learned * 15, 4)
    (expected,) = torch.autograd.grad(fake_quantize(x, type(scaled)(learned, qparams.zero_point, 0, 15)).sum(), learned)
    quantizer(x, 4).sum().backward()
    assert expected != 0
    torch.testing.assert_close(quantizer.trained[2].grad, slope * expected / math.sqrt(len(x) * 15))


def test_weight_decay_and_momentum_do_not_reach_bit_widths_not_used_yet():
    x = make_values()
    quantizer, fresh = calibrated(x), calibrated(x)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    for bits in (3, 3, 5):
        optimizer.zero_grad()
        quantizer(x, bits).square().sum().backward()
        optimizer.step()
    assert all(step.isfinite() for step in quantizer.trained)
    assert scale_at(quantizer, 3) != scale_at(fresh, 3)
    assert scale_at(quantizer, 4) == scale_at(fresh, 4)


def test_another_bit_width_may_start_between_forward_and_backward():
    x = make_values().requires_grad_()
    quantizer = calibrated(x)
    (quantizer(x, 4) + quantizer(x, 6)).sum().backward()
    used = calibrated(x)
    for bits in (4, 6):
        used(x, bits).sum().backward()
        assert torch.equal(quantizer.trained[bits - 2].grad, used.trained[bits - 2].grad)
        assert used.trained[bits - 2].grad != 0


def test_one_value_is_unchanged_and_gives_no_gradient():
    quantizer, x = calibrated(torch.full((9,), 0.7)), torch.full((3,), 0.7)
    output = quantizer(x, 4)
    assert torch.equal(output, x)
    output.sum().backward()
    assert quantizer.trained[2].grad == 0


# ---- new observations, files -----------------------------------------------------------------------------------------


def test_new_observations_start_all_steps_again():
    quantizer, x = trained(), make_values().float()
    assert scale_at(quantizer, 4) == pytest.approx(1.5 * scale_at(calibrated(x), 4))  # kept at each use
    quantizer.observer.update(2 * x)
    both = calibrated(x)
    both.observer.update(2 * x)
    for bits in (7, 4, 5):
        assert scale_at(quantizer, bits) == scale_at(both, bits)


def restore_first(quantizer, saved, observer):
    quantizer.observer.restore(torch.stack(observer.range), observer.sums.clone())
    quantizer.load_state_dict(saved)


def load_first(quantizer, saved, observer):
    quantizer.load_state_dict(saved)
    quantizer.observer.restore(torch.stack(observer.range), observer.sums.clone())


@pytest.mark.parametrize("load", [restore_first, load_first])
@pytest.mark.parametrize(
    "target",
    [
        lambda: LsqActivation(TensorSpec(POINTS["plain"])),
        lambda: calibrated(torch.ones(3)),
        lambda: trained(9 * make_values().float()),
    ],
    ids=["fresh", "calibrated", "trained"],
)
@pytest.mark.parametrize(
    "move",
    [lambda each: each, copy.deepcopy, lambda each: each.float()],
    ids=["as it is", "copied", "moved"],
)
def test_loaded_steps_are_kept(load, target, move):
    source, quantizer = trained(), target()
    load(quantizer, copy.deepcopy(source.state_dict()), source.observer)
    quantizer = move(quantizer)
    fresh = calibrated(make_values().float())
    for bits, factor in ((4, 1.5), (7, 0.75), (5, 1.0)):
        assert scale_at(quantizer, bits) == pytest.approx(factor * scale_at(fresh, bits), rel=1e-6)
    assert scale_at(move(quantizer), 4) == pytest.approx(scale_at(source, 4), rel=1e-6)
    quantizer.observer.update(torch.tensor([-99.0]))
    fresh.observer.update(torch.tensor([-99.0]))
    assert scale_at(quantizer, 4) == pytest.approx(scale_at(fresh, 4))


def test_loaded_steps_of_other_observations_are_not_used():
    quantizer = LsqActivation(TensorSpec(POINTS["plain"]))
    quantizer.load_state_dict(trained().state_dict())
    quantizer.observer.update(3 * make_values().float())
    assert scale_at(quantizer, 4) == scale_at(calibrated(3 * make_values().float()), 4)


def test_it_runs_in_inference_mode_first():
    quantizer, x = calibrated(make_values().float()), make_values().float()
    with torch.inference_mode():
        output = quantizer(x, 4)
    assert torch.equal(output, quantizer(x, 4))
    quantizer(x, 4).sum().backward()


def make_quantization():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(3)))
    quantization = Quantization(model, scheme=Scheme.parse("act=lsq:2.4"))
    images = torch.randn(2, 3, 4, 4)
    quantization.calibrate([images])
    with quantization.at(Bits(4, 4)):
        model(images)
    for quantizer in quantization.quantizers.values():
        if isinstance(quantizer, LsqActivation):
            quantizer.trained[2].data *= 1.25
    return quantization, images


def run(quantization, images):
    with quantization.at(Bits(4, 4)), torch.no_grad():
        return quantization.model(images)


def test_a_file_keeps_the_steps(tmp_path):
    quantization, images = make_quantization()
    expected = run(quantization, images)
    quantization.save(tmp_path / "q.safetensors")
    loaded = Quantization.load(tmp_path / "q.safetensors", quantization.model)
    assert torch.equal(run(loaded, images), expected)
    quantization.calibrate([images])
    assert not torch.equal(run(quantization, images), expected)


def test_a_file_with_steps_that_are_not_finite_is_damaged(tmp_path):
    quantization, _ = make_quantization()
    quantizer = next(each for each in quantization.quantizers.values() if isinstance(each, LsqActivation))
    quantizer.trained[2].data.fill_(math.inf)
    with pytest.raises(ValueError, match="trained parameters of 1:input are not finite"):
        LsqActivation(quantizer.spec).load_state_dict(quantizer.state_dict())
    quantization.save(tmp_path / "q.safetensors")
    with pytest.raises(UserError, match=r"q\.safetensors is damaged \(trained parameters of 1:input are not finite\)"):
        Quantization.load(tmp_path / "q.safetensors", quantization.model)
