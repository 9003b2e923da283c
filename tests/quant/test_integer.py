"""Placement ``integer``: a ResNet-18 in nothing but integers and one factor a channel, written out."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, Quantization, Scheme, Side, quant_points

SCHEME = Scheme(placement="integer")
ENDS = (-2.1, 2.6)


def trained_by_chance(model, seed=0):
    """With norms as a training leaves them: statistics, weights of either sign, one that is 0."""
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


class Machine:
    """Tensors are integers with a scale and a zero point; a conv adds up integers, its bias among them."""

    def __init__(self, quantization, bits):
        self.q, self.bits, self.model = quantization, bits, quantization.model
        self.points = {point.key: point for point in quantization.points}

    def get_qparams(self, key):
        point = self.points[key]
        return self.q[point].get_qparams(point.bits or self.bits.act)

    def on_grid(self, real, key):
        grid = self.get_qparams(key)
        codes = torch.clamp(torch.round(real / grid.scale) + grid.zero_point, grid.qmin, grid.qmax)
        return codes - grid.zero_point, grid.scale

    def conv(self, path, norm_path, tensor):
        (x, scale), conv, norm = tensor, self.model.get_submodule(path), self.model.get_submodule(norm_path)
        width = self.points[f"{path}:weight"].bits or self.bits.weight
        most = 2 ** (width - 1)
        weight_scale = conv.weight.abs().amax((1, 2, 3)) / ((2**width - 1) / 2)
        codes = torch.clamp(torch.round(conv.weight / weight_scale.view(-1, 1, 1, 1)), -most, most - 1)
        carried = codes * 2 ** (8 - width)
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * factor
        carried = torch.where(factor.view(-1, 1, 1, 1) == 0, 0, carried)
        step = scale * torch.where(factor == 0, 1, weight_scale * factor) / 2 ** (8 - width)
        whole = torch.round(bias / step.abs()) * step.sign()  # the scale has the norm's sign
        sums = F.conv2d(x, carried, None, conv.stride, conv.padding) + whole.view(-1, 1, 1)
        assert torch.equal(sums, sums.round())
        return sums * step.view(-1, 1, 1)

    def block(self, path, tensor):
        hidden = F.relu(self.conv(f"{path}.conv1", f"{path}.bn1", tensor))
        hidden = self.on_grid(hidden, f"{path}.conv2:input")
        added, scale = self.on_grid(self.conv(f"{path}.conv2", f"{path}.bn2", hidden), f"{path}.bn2:output")
        shortcut = tensor
        if f"{path}.downsample:output" in self.points:
            real = self.conv(f"{path}.downsample.0", f"{path}.downsample.1", tensor)
            shortcut = self.on_grid(real, f"{path}.downsample:output")
        return self.on_grid(F.relu(added * scale + shortcut[0] * shortcut[1]), f"{path}:output")

    def features(self, pixels):
        tensor = self.on_grid(pixels, "conv1:input")
        codes, scale = self.on_grid(F.relu(self.conv("conv1", "bn1", tensor)), "relu:output")
        tensor = F.max_pool2d(codes, 3, 2, 1), scale  # its zero point is exactly 0
        assert self.get_qparams("relu:output").zero_point == 0
        for stage in range(1, 5):
            for number in range(2):
                tensor = self.block(f"layer{stage}.{number}", tensor)
        return tensor[0] * tensor[1]


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4), Bits(2, 4)], ids=str)
def test_a_resnet_18_in_integers_is_the_simulation_exactly(bits):
    model = trained_by_chance(torchvision.models.resnet18())
    quantization = Quantization(model, quant_points(model, "integer", ENDS), SCHEME)
    quantization.calibrate(images(4).split(2))
    seen = []
    with torch.no_grad(), quantization.at(bits):
        handle = model.layer4.register_forward_hook(lambda module, args, output: seen.append(output))
        model(images(2))
    handle.remove()
    assert torch.equal(seen[0], Machine(quantization, bits).features(images(2)))
    assert seen[0].unique().numel() > 8


def test_all_that_is_computed_with_lies_on_a_grid_that_has_a_zero():
    model = trained_by_chance(torchvision.models.mobilenet_v2())
    quantization = Quantization(model, scheme=SCHEME)
    quantization.calibrate([images(2)])
    assert all(chain.source is not None for chain in quantization.chains)
    for point in quantization.points:
        if not point.is_weight:
            low, high = quantization[point].observer.range
            zero = quantization[point].get_qparams(8).zero_point
            assert 0 <= zero <= 255
            assert zero == 0 or low < 0
            assert zero == 255 or high > 0


def test_it_is_saved_and_outside_the_network_is_float(tmp_path):
    model = trained_by_chance(torchvision.models.resnet18())
    before = model(images(1))
    quantization = Quantization(model, quant_points(model, "integer", ENDS), SCHEME)
    quantization.calibrate([images(2)])
    quantization.save(tmp_path / "q.safetensors")
    again = Quantization.load(tmp_path / "q.safetensors", model)
    found = []
    for each in (quantization, again):
        with each.at(Bits(4, 4)):
            found.append(model(images(1)))
    assert torch.equal(*found)
    assert torch.equal(model(images(1)), before)
    published = Quantization(model)
    published.calibrate([images(2)])
    with published.at(Bits(4, 4)):
        assert not torch.equal(model(images(1)), found[0])


def test_shards_are_folded_as_one_stream_and_what_was_never_traced_is_refused():
    model = trained_by_chance(torchvision.models.resnet18())
    whole, part, shards = (Quantization(model, quant_points(model, "integer", ENDS), SCHEME) for _ in range(3))
    whole.calibrate([images(2)])
    part.calibrate([images(2)])
    shards.merge(part)
    found = []
    for each in (whole, shards):
        with torch.no_grad(), each.at(Bits(4, 4)):
            found.append(model(images(1)))
    assert torch.equal(*found)
    observed = Quantization(model, scheme=SCHEME)
    with torch.no_grad(), observed.observing():
        model(images(1))
    with (
        pytest.raises(UserError, match="folds the norms that calibrate\\(\\) finds; calibrate first"),
        observed.at(Bits(4, 4)),
    ):
        pass


def test_re_estimated_norms_are_folded_as_they_are_at_the_width():
    model = trained_by_chance(torchvision.models.resnet18())
    quantization = Quantization(model, scheme=Scheme(norms="re-estimated", placement="integer"))
    quantization.calibrate([images(4)])
    quantization.reestimate_norms(Bits(4, 4), [images(4)])
    seen = []
    with torch.no_grad(), quantization.at(Bits(4, 4)):
        handle = model.bn1.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        model(images(4))
    handle.remove()
    assert seen[0].mean((0, 2, 3)).sub(model.bn1.bias).abs().max() < 0.05
    assert seen[0].var((0, 2, 3)).sqrt().sub(model.bn1.weight.abs()).abs().max() < 0.05


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


def test_the_images_ends_are_given_or_observed():
    model = trained_by_chance(torchvision.models.resnet18())
    for ends in (ENDS, None):
        quantization = Quantization(model, quant_points(model, "integer", ends), SCHEME)
        quantization.calibrate([images(2)])
        image = next(point for point in quantization.points if point.side is Side.INPUT)
        grid = quantization[image].get_qparams(8)
        low, high = ends or (images(2).min(), images(2).max())
        assert grid.scale.item() == pytest.approx(float(high - low) / 255)
