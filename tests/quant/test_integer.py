"""Placement ``integer``, compared with a ResNet-18 written in integers with one factor per channel."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.files import atomic_write
from ssql_det.core.tensor_files import read_safetensors, write_safetensors
from ssql_det.quant import Bits, Quantization, Scheme, Side, quant_points

SCHEME = Scheme(placement="integer")
IMAGE_RANGE = (-2.1, 2.6)


def randomize_norms(model, seed=0):
    """Norms as after training: random statistics, weights of both signs and one of 0."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) / 5)
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
        with torch.no_grad():
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator) / 3)
            norm.weight[0] = 0
    return model.double().eval()


def images(count, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 4 - 2


class IntegerResNet18:
    """Tensors are integers with a scale; a conv adds up integers, including its bias."""

    def __init__(self, quantization, bits):
        self.quantization, self.bits, self.model = quantization, bits, quantization.model
        self.points = {point.key: point for point in quantization.points}

    def get_qparams(self, key):
        point = self.points[key]
        return self.quantization[point].get_qparams(point.bits or self.bits.act)

    def get_factors(self, key):
        """By which channels are divided before they are quantized."""
        return self.quantization.equalization.factors.get(self.points[key], torch.ones(1))

    def quantize(self, x, key):
        qparams = self.get_qparams(key)
        x = x / self.get_factors(key)  # part of the one factor per channel of the conv before
        integers = torch.clamp(torch.round(x / qparams.scale) + qparams.zero_point, qparams.qmin, qparams.qmax)
        return integers - qparams.zero_point, qparams.scale

    def conv(self, path, norm_path, tensor):
        (x, scale), conv, norm = tensor, self.model.get_submodule(path), self.model.get_submodule(norm_path)
        bits = self.points[f"{path}:weight"].bits or self.bits.weight
        limit = 2 ** (bits - 1)
        weight = conv.weight / self.get_factors(f"{path}:weight")
        weight_scale = weight.abs().amax((1, 2, 3)) / ((2**bits - 1) / 2)
        integers = torch.clamp(torch.round(weight / weight_scale.view(-1, 1, 1, 1)), -limit, limit - 1)
        shifted = integers * 2 ** (8 - bits)
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * factor
        shifted = torch.where(factor.view(-1, 1, 1, 1) == 0, 0, shifted)
        out_scale = scale * torch.where(factor == 0, 1, weight_scale * factor) / 2 ** (8 - bits)
        integer_bias = torch.round(bias / out_scale.abs()) * out_scale.sign()  # the scale has the norm's sign
        sums = F.conv2d(x, shifted, None, conv.stride, conv.padding) + integer_bias.view(-1, 1, 1)
        assert torch.equal(sums, sums.round())
        return sums * out_scale.view(-1, 1, 1)

    def block(self, path, tensor):
        hidden = F.relu(self.conv(f"{path}.conv1", f"{path}.bn1", tensor))
        hidden = self.quantize(hidden, f"{path}.conv2:input")
        residual, scale = self.quantize(self.conv(f"{path}.conv2", f"{path}.bn2", hidden), f"{path}.bn2:output")
        shortcut = tensor
        if f"{path}.downsample:output" in self.points:
            output = self.conv(f"{path}.downsample.0", f"{path}.downsample.1", tensor)
            shortcut = self.quantize(output, f"{path}.downsample:output")
        return self.quantize(F.relu(residual * scale + shortcut[0] * shortcut[1]), f"{path}:output")

    def features(self, pixels):
        tensor = self.quantize(pixels, "conv1:input")
        integers, scale = self.quantize(F.relu(self.conv("conv1", "bn1", tensor)), "relu:output")
        tensor = F.max_pool2d(integers, 3, 2, 1), scale  # its zero point is exactly 0
        assert self.get_qparams("relu:output").zero_point == 0
        for stage in range(1, 5):
            for number in range(2):
                tensor = self.block(f"layer{stage}.{number}", tensor)
        return tensor[0] * tensor[1]


@pytest.mark.parametrize("equalize", ["no", "yes"])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(2, 4)], ids=str)
def test_the_simulation_equals_a_resnet_18_in_integers(bits, equalize):
    model = randomize_norms(torchvision.models.resnet18())
    scheme = replace(SCHEME, equalize=equalize)
    quantization = Quantization(model, quant_points(model, "integer", IMAGE_RANGE), scheme)
    quantization.calibrate(images(4).split(2))
    outputs = []
    with torch.no_grad(), quantization.at(bits):
        handle = model.layer4.register_forward_hook(lambda module, args, output: outputs.append(output))
        model(images(2))
    handle.remove()
    integer_model = IntegerResNet18(quantization, bits)
    assert torch.equal(outputs[0], integer_model.features(images(2)))
    assert outputs[0].unique().numel() > 8
    assert (integer_model.get_factors("layer1.0.conv2:input").unique().numel() > 8) == (equalize == "yes")


def test_all_inputs_are_quantized_and_all_ranges_include_zero():
    model = randomize_norms(torchvision.models.mobilenet_v2())
    quantization = Quantization(model, scheme=SCHEME)
    quantization.calibrate([images(2)])
    assert all(chain.input_point is not None for chain in quantization.chains)
    for point in quantization.points:
        if not point.is_weight:
            low, high = quantization[point].observer.range
            zero_point = quantization[point].get_qparams(8).zero_point
            assert 0 <= zero_point <= 255
            assert zero_point == 0 or low < 0
            assert zero_point == 255 or high > 0


@pytest.mark.parametrize(
    "change", [{"norm": "conv1"}, {"norm": "magic"}, {"layer": "magic"}, {"layer": "layer1.0.conv1"}]
)
def test_a_file_with_a_chain_of_other_modules_is_an_error(change, tmp_path):
    model = torchvision.models.resnet18().eval()
    quantization = Quantization(model, quant_points(model, "integer", IMAGE_RANGE), SCHEME)
    quantization.calibrate([images(1)])
    first, *others = quantization.chains
    quantization.chains = (replace(first, **change), *others)
    quantization.save(tmp_path / "q.safetensors")
    with pytest.raises(UserError, match=r"q\.safetensors is damaged \(.*chain.*\); calibrate again"):
        Quantization.load(tmp_path / "q.safetensors", model)


def test_a_loaded_quantization_gives_equal_outputs_and_outside_the_network_is_float(tmp_path):
    model = randomize_norms(torchvision.models.resnet18())
    before = model(images(1))
    quantization = Quantization(model, quant_points(model, "integer", IMAGE_RANGE), SCHEME)
    quantization.calibrate([images(2)])
    quantization.save(tmp_path / "q.safetensors")
    loaded = Quantization.load(tmp_path / "q.safetensors", model)
    results = []
    for each in (quantization, loaded):
        with each.at(Bits(4, 4)):
            results.append(model(images(1)))
    assert torch.equal(*results)
    assert torch.equal(model(images(1)), before)
    published = Quantization(model)
    published.calibrate([images(2)])
    with published.at(Bits(4, 4)):
        assert not torch.equal(model(images(1)), results[0])


def test_what_follows_a_layer_is_in_the_file_of_a_quantization_but_not_in_those_of_version_2(tmp_path):
    model = randomize_norms(torchvision.models.resnet18())
    quantization = Quantization(model, quant_points(model, "integer", IMAGE_RANGE), SCHEME)
    quantization.calibrate([images(2)])
    path = tmp_path / "q.safetensors"
    quantization.save(path)
    chains = Quantization.load(path, model).chains
    assert chains == quantization.chains
    assert (chains[0].activation, chains[0].output_point.key) == ("relu", "relu:output")
    tensors, metadata = read_safetensors(path)
    del metadata["sha256"]
    parts = [each[:3] for each in json.loads(metadata["chains"])]
    with atomic_write(path) as file:
        write_safetensors(tensors, {**metadata, "version": "2", "chains": json.dumps(parts)}, file)
    loaded = Quantization.load(path, model)
    assert loaded.chains == tuple(replace(each, activation="", output_point=None) for each in chains)
    with torch.no_grad(), quantization.at(Bits(4, 4)):
        expected = model(images(1))
    with torch.no_grad(), loaded.at(Bits(4, 4)):
        assert torch.equal(model(images(1)), expected)


def test_merged_shards_are_folded_and_a_model_that_was_not_calibrated_is_an_error():
    model = randomize_norms(torchvision.models.resnet18())
    whole, part, shards = (Quantization(model, quant_points(model, "integer", IMAGE_RANGE), SCHEME) for _ in range(3))
    whole.calibrate([images(2)])
    part.calibrate([images(2)])
    shards.merge(part)
    results = []
    for each in (whole, shards):
        with torch.no_grad(), each.at(Bits(4, 4)):
            results.append(model(images(1)))
    assert torch.equal(*results)
    observed = Quantization(model, scheme=SCHEME)
    with torch.no_grad(), observed.observing():
        model(images(1))
    with (
        pytest.raises(UserError, match="folds the norms that calibrate\\(\\) finds; calibrate first"),
        observed.at(Bits(4, 4)),
    ):
        pass


def test_re_estimated_norms_are_folded_as_they_are_at_the_width():
    model = randomize_norms(torchvision.models.resnet18())
    quantization = Quantization(model, scheme=Scheme(norms="re-estimated", placement="integer"))
    quantization.calibrate([images(4)])
    quantization.correct_norms(Bits(4, 4), [images(4)])
    outputs = []
    with torch.no_grad(), quantization.at(Bits(4, 4)):
        handle = model.bn1.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
        model(images(4))
    handle.remove()
    assert outputs[0].mean((0, 2, 3)).sub(model.bn1.bias).abs().max() < 0.05
    assert outputs[0].var((0, 2, 3)).sqrt().sub(model.bn1.weight.abs()).abs().max() < 0.05


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_tiny_patch16_224", "VisionTransformer has no rules for placement=integer; use placement=published"),
        ("efficientnet_b0", r"blocks\.0\.0 has squeeze-and-excitation, which placement=integer does not support"),
        ("seresnet50", r"layer1\.0 has squeeze-and-excitation, .*; use placement=published"),
    ],
)
def test_networks_without_rules_are_refused(name, said):
    with pytest.raises(UserError, match=said):
        quant_points(timm.create_model(name), "integer")


def test_an_unknown_placement_is_named():
    with pytest.raises(UserError, match=r"unknown placement 'intger'; did you mean 'integer'\?"):
        Scheme.parse("placement=intger")


def test_the_image_range_is_given_or_observed():
    model = randomize_norms(torchvision.models.resnet18())
    for image_range in (IMAGE_RANGE, None):
        quantization = Quantization(model, quant_points(model, "integer", image_range), SCHEME)
        quantization.calibrate([images(2)])
        image = next(point for point in quantization.points if point.side is Side.INPUT)
        qparams = quantization[image].get_qparams(8)
        low, high = image_range or (images(2).min(), images(2).max())
        assert qparams.scale.item() == pytest.approx(float(high - low) / 255)
