"""Tuning of norms, biases and steps towards the float network's outputs."""

import copy

import pytest
import torch
from support.networks import ConvNorm
from torch import nn

from ssql_det.ptq.tuning import tune
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.forward import forward_images

LOW = Bits(2, 3)
SCHEME = "weight=centred, act=lsq"


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [ConvNorm(3, 8, 3), nn.ReLU(), ConvNorm(8, 16, 3, 2), nn.ReLU(), ConvNorm(16, 16, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 5, 1, bias=False)).double()
    with torch.no_grad():
        for _ in range(20):  # so that norms have statistics
            model(torch.randn(4, 3, 16, 16, dtype=torch.float64))
    return model.eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=generator) for _ in range(3)]


def calibrate(model, batches, scheme=SCHEME):
    quantization = Quantization(model, scheme=Scheme.parse(scheme))
    quantization.calibrate(batches)
    return quantization


def make_loss(model, batches):
    with torch.no_grad():
        targets = [model(batch) for batch in batches]
    return lambda network, index: (network(batches[index]) - targets[index]).square().mean()


def tune_once(model, batches, steps=12, **options):
    quantization = calibrate(model, batches)
    losses = tune(quantization, LOW, batches, make_loss(model, batches), steps, forward_images, **options)
    return quantization, losses


def test_tuning_brings_the_outputs_closer_to_those_in_float(model, batches):
    own = copy.deepcopy(model.state_dict())
    images = batches[0]
    expected = model(images)
    quantization, losses = tune_once(model, batches, steps=30)
    before = calibrate(model, batches)
    held_out = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    target = model(held_out)
    errors = []
    for each in (before, quantization):
        with torch.no_grad(), each.at(LOW):
            errors.append((model(held_out) - target).square().mean())
    assert errors[1] < 0.85 * errors[0]
    assert len(losses) == 30
    assert torch.equal(model(images), expected)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gains_shifts_biases_and_steps_are_tuned_and_nothing_else(model, batches):
    quantization, _ = tune_once(model, batches)
    repair = quantization.repairs["2w3a"]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert {*repair.tensors} == {f"{norm}.{name}" for norm in norms for name in ("weight", "bias")} | {"6.bias"}
    assert repair.tensors["6.bias"].abs().min() > 0  # of a layer that has none
    assert {*repair.quantizers} == {point for point in quantization.points if not point.is_weight}
    for point, quantizer in repair.quantizers.items():
        steps = zip(quantizer.trained, quantization[point].trained, strict=True)
        assert sum(not torch.equal(*each) for each in steps) == 1  # the step of this bit-width


def test_other_bit_widths_that_were_used_before_change_nothing(model, batches):
    found = []
    for others in ((), (Bits(2, 2), Bits(8, 8))):
        quantization = calibrate(model, batches)
        for bits in others:  # initializes the steps of these bit-widths
            with quantization.at(bits), torch.no_grad():
                model(batches[0])
        tune(quantization, LOW, batches, make_loss(model, batches), 3, forward_images)
        found.append(quantization.repairs["2w3a"].tensors["6.bias"])
    assert torch.equal(*found)


def test_a_transposed_conv_without_bias_gets_one_of_its_output_channels(batches):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.Conv2d(6, 2, 1))
    layers.double().eval()
    quantization = calibrate(layers, batches)
    tune(quantization, LOW, batches, make_loss(layers, batches), 2, forward_images)
    assert quantization.repairs["2w3a"].tensors["1.bias"].shape == (6,)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(model, batches):
    found = [tune_once(model, batches, seed=seed)[0].repairs["2w3a"].tensors["6.bias"] for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_matched_norms_are_where_tuning_starts(model, batches):
    quantization = calibrate(model, batches, f"{SCHEME}, norms=matched")
    quantization.correct_norms(LOW, batches)
    matched = dict(quantization.repairs["2w3a"].tensors)
    (loss,) = tune(quantization, LOW, batches, make_loss(model, batches), 1, forward_images, learning_rate=0)
    tensors = quantization.repairs["2w3a"].tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in matched.items())
    assert loss > 0


def test_an_error_leaves_the_quantization_as_it_was(model, batches):
    quantization = calibrate(model, batches)
    compute_loss = make_loss(model, batches)
    calls = []

    def fail_later(network, index):
        calls.append(index)
        if len(calls) == 3:
            raise ZeroDivisionError
        return compute_loss(network, index)

    with pytest.raises(ZeroDivisionError):
        tune(quantization, LOW, batches, fail_later, 5, forward_images)
    repair = quantization.repairs["2w3a"]
    assert not repair.tensors
    assert not repair.quantizers
    assert all(parameter.requires_grad for parameter in model.parameters())
