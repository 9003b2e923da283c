"""Equalized channels, against networks whose weights are really rescaled."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from support import equalization_ranks
from support.networks import D2ResNet, PlainNet
from torch import nn

from ssql_det.backbones import build_backbone
from ssql_det.core.errors import UserError
from ssql_det.core.launch import launch
from ssql_det.core.tensor_files import read_safetensors
from ssql_det.pretrain.analyze_checkpoints import AnalysisSettings
from ssql_det.ptq.blocks import Block
from ssql_det.ptq.brecq import Brecq
from ssql_det.ptq.reconstruction import reconstruct
from ssql_det.quant import Bits, FixedBits, Quantization, QuantPoint, Scheme, Side, quant_points
from ssql_det.quant.forward import forward_images
from ssql_det.quant.tracing import trace_pass
from ssql_det.ssl import SSQL, SimSiam

LOW = Bits(3, 3)


class Mixed(nn.Module):
    """A pool, grouped and depthwise convs, and a flattened map between layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.conv3 = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.fc1 = nn.Linear(12 * 4 * 4, 10)
        self.fc2 = nn.Linear(10, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(F.relu(self.conv2(x)))), 4)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


# For each network, the layers with a ReLU between them.
PAIRS = {
    Mixed: [("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "fc1")],
    PlainNet: [("encode", "decode")],
    D2ResNet: [
        (f"{block}.{first}", f"{block}.{second}")
        for block in ("res2.0", "res2.1", "res3.0")
        for first, second in (("conv1", "conv2"), ("conv2", "conv3"))
    ],
}


def build(network):
    """A network in float64 whose channels differ in size, as do those of trained networks."""
    torch.manual_seed(0)
    model = network().double().eval()
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith("norm.bias"):
                parameter.normal_()
            elif name.endswith("norm.weight") or parameter.ndim > 1:
                parameter.mul_(torch.randn(len(parameter), *[1] * (parameter.ndim - 1)).exp())
    return model


def draw_images(count=4, seed=1, size=32):
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def calibrate(model, batches, scheme="equalize=yes"):
    quantization = Quantization(model, scheme=Scheme.parse(scheme))
    quantization.calibrate(batches)
    return quantization


def get_scale(quantization, layer):
    """``s`` at the input of a layer."""
    return quantization.equalization.factors[QuantPoint(layer, Side.INPUT)]


def rescale(model, first, second, scale):
    """Divide the outputs of the first layer by ``scale``, and multiply the weights of the second one."""
    layer, reader = model.get_submodule(first), model.get_submodule(second)
    per_channel = scale.flatten()
    if isinstance(reader, nn.Linear):  # after a flattened map of 4 x 4
        per_channel = per_channel[::16]
        assert torch.equal(per_channel.repeat_interleave(16), scale)
    owner = getattr(layer, "norm", layer)
    owner.weight /= per_channel.view(-1, *[1] * (owner.weight.ndim - 1))
    owner.bias /= per_channel
    if isinstance(reader, nn.ConvTranspose2d):
        reader.weight *= scale.view(-1, 1, 1, 1)
    elif isinstance(reader, nn.Linear):
        reader.weight *= scale
    else:
        for output in range(reader.out_channels):
            inputs = reader.in_channels // reader.groups
            start = output * reader.groups // reader.out_channels * inputs
            reader.weight[output] *= per_channel[start : start + inputs].view(-1, 1, 1)


def build_rescaled(model, quantization):
    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        for first, second in PAIRS[type(model)]:
            rescale(rescaled, first, second, get_scale(quantization, second))
    return rescaled


def test_the_scale_is_that_of_the_formula():
    model, batches = build(D2ResNet), draw_images(6).split(2)
    scale = get_scale(calibrate(model, batches), "res2.1.conv2").flatten()
    block = model.res2[1]
    with torch.no_grad():
        x = torch.relu(block.conv1(model.res2[0](model.stem(torch.cat(batches)))))
    expected = torch.sqrt(x.abs().amax((0, 2, 3)) / block.conv2.weight.abs().amax((0, 2, 3)))
    torch.testing.assert_close(scale, expected / expected.log().mean().exp())
    assert scale.max() > 2 * scale.min()


def test_channels_without_values_or_weights_are_not_rescaled():
    model = build(Mixed)
    with torch.no_grad():
        model.conv1.weight[2], model.conv1.bias[2] = 0, 0
        model.conv2.weight[3:, 1] = 0  # of channel 5, in the second group
    scale = get_scale(calibrate(model, [draw_images()]), "conv2").flatten()
    live = [0, 1, 3, 4, 6, 7]
    assert scale[[2, 5]].tolist() == [1, 1]
    torch.testing.assert_close(scale[live].log().mean(), torch.zeros((), dtype=torch.float64))
    maxima = F.relu(model.conv1(draw_images())).amax((0, 2, 3)) / scale
    weights = torch.cat([model.conv2.weight[:3].abs().amax((0, 2, 3)), model.conv2.weight[3:].abs().amax((0, 2, 3))])
    ratio = (maxima / (weights * scale))[live]  # up to a common factor, both maxima are equal
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize("network", PAIRS)
def test_the_float_function_stays_and_the_network_is_not_changed(network):
    model, images = build(network), draw_images()
    state, expected = copy.deepcopy(model.state_dict()), model(images)
    quantization = calibrate(model, [images])
    assert {point.path for point in quantization.equalization.factors} == {reader for _, reader in PAIRS[network]}
    rescaled = build_rescaled(model, quantization)
    torch.testing.assert_close(rescaled(images), expected, rtol=1e-5, atol=0)
    assert any(not torch.equal(tensor, state[name]) for name, tensor in rescaled.state_dict().items())
    with quantization.at(Bits.FP):
        assert torch.equal(model(images), expected)
    with quantization.at(LOW):
        assert not torch.equal(model(images), expected)
    assert torch.equal(model(images), expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("scheme", ["minmax", "weight=centred, act=mse"])
@pytest.mark.parametrize("network", PAIRS)
def test_a_width_is_that_of_the_rescaled_network(network, scheme):
    model, images = build(network), draw_images()
    quantization = calibrate(model, [images], f"{scheme}, equalize=yes")
    rescaled = build_rescaled(model, quantization)
    plain = calibrate(rescaled, [images], scheme)
    for point in plain.points:
        if not point.is_weight:
            torch.testing.assert_close(plain[point].observer.range, quantization[point].observer.range)
            plain[point].observer = quantization[point].observer
    unequalized = calibrate(model, [images], scheme)
    with torch.no_grad(), quantization.at(LOW), plain.at(LOW):
        torch.testing.assert_close(model(images), rescaled(images), rtol=1e-9, atol=1e-9)
        found = model(images)
    with torch.no_grad(), unequalized.at(LOW):
        assert not torch.allclose(model(images), found, rtol=1e-3)


def test_the_scales_of_a_weight_follow_its_training():
    model, point = build(D2ResNet), QuantPoint("res2.0.conv2", Side.WEIGHT)
    quantization = calibrate(model, [draw_images()], "weight=centred, equalize=yes")
    factors, quantizer = quantization.equalization.factors[point], quantization[point]
    weight = model.res2[0].conv2.weight
    for bits in (Bits(2, None), Bits(3, None), Bits(2, None)):
        with quantization.at(bits):
            (grad,) = torch.autograd.grad(model.res2[0].conv2.weight.square().sum(), weight)
        with torch.no_grad():
            weight -= 0.3 * grad
        new = Scheme(weight="centred").build_quantizer(quantizer.spec)
        expected = new(weight.detach() / factors, bits.weight) * factors
        with quantization.at(bits):
            assert torch.equal(model.res2[0].conv2.weight, expected)
        with quantization.at(bits), torch.no_grad():
            assert torch.equal(model.res2[0].conv2.weight, expected)
    with quantization.at(Bits(8, None)):
        (grad,) = torch.autograd.grad(model.res2[0].conv2.weight.sum(), weight)
    assert set(grad.round(decimals=9).unique().tolist()) <= {0, 1}  # straight through


def test_half_precision_stays():
    model, images = build(D2ResNet).bfloat16(), draw_images().bfloat16()
    quantization = calibrate(model, [images])
    with torch.no_grad(), quantization.at(LOW):
        assert model(images).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", ["equalize=yes", "weight=centred, act=lsq, norms=matched, equalize=yes"])
def test_files_restore_the_factors_also_those_of_a_repair(scheme, tmp_path):
    model, images = build(D2ResNet), draw_images()
    quantization = calibrate(model, iter(images.split(2)), scheme)
    if quantization.list_missing_repairs(LOW):
        quantization.correct_norms(LOW, [images])
        for point in quantization.points:
            quantization.repairs["3w3a"].quantizers[point] = copy.deepcopy(quantization[point])
    quantization.save(tmp_path / "q.safetensors")
    loaded = Quantization.load(tmp_path / "q.safetensors", model)
    outputs = []
    for each in (quantization, loaded):
        with torch.no_grad(), each.at(LOW):
            outputs.append(model(images))
    assert torch.equal(*outputs)
    quantization.scheme = replace(quantization.scheme, equalize="no")
    quantization.save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"is damaged \(unexpected tensors at res2.0.conv2:input"):
        Quantization.load(tmp_path / "other.safetensors", model)


def test_calibrating_again_replaces_the_factors_and_an_error_keeps_them():
    model, images = build(D2ResNet), draw_images()
    quantization, expected = calibrate(model, [2 * images]), calibrate(model, [images])
    assert not torch.equal(get_scale(quantization, "res3.0.conv2"), get_scale(expected, "res3.0.conv2"))
    quantization.calibrate([images])
    with pytest.raises(UserError, match="NaN or infinite values"):
        quantization.calibrate([2 * images, images * torch.nan])
    with pytest.raises(UserError, match="the calibration loader is empty"):
        quantization.calibrate([])
    outputs = []
    for each in (quantization, expected):
        with torch.no_grad(), each.at(LOW):
            outputs.append(model(images))
    assert torch.equal(*outputs)


@pytest.mark.slow
def test_two_processes_give_the_factors_and_ranges_of_one(tmp_path):
    launch(equalization_ranks.calibrate_share, tmp_path / "two.safetensors", processes=2)
    launch(equalization_ranks.calibrate_share, tmp_path / "one.safetensors")
    (one, _), (two, _) = (read_safetensors(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any("equalization" in name for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)


# ---- which layers --------------------------------------------------------------------------------------------------


class Readers(nn.Module):
    """Two convs with a ReLU between them; ``read`` is called with the second one and the tensor between them."""

    def __init__(self, read, activation=F.relu):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(3, 3, 1)  # has 8 bits
        self.read, self.activation = read, activation

    def forward(self, x):
        return self.read(self, self.activation(self.first(x)))


@pytest.mark.parametrize(
    "read",
    [
        lambda net, t: net.last(net.second(t) + t),
        lambda net, t: torch.cat([net.last(net.second(t)), t]),
        lambda net, t: (net.last(net.second(t)), t),
        lambda net, t: net.last(net.second(t) + net.third(t)),  # quantized twice
        lambda net, t: net.last(net.second(torch.sigmoid(t))),
        lambda net, t: net.last(net.second(t.transpose(1, 2).contiguous().view(t.shape))),
        lambda net, t: net.last(net.second(t) + net.second(net.third(net.last(t)))),  # also reads another tensor
        lambda net, t: net.last(net.second(F.avg_pool2d(t, 2))),
        lambda net, t: net.last(net.second(t.add_(1))),
    ],
)
def test_a_tensor_that_anything_else_reads_is_left_out(read):
    model = Readers(read)
    points = [
        *(QuantPoint(name, Side.INPUT) for name in ("second", "third")),
        *(QuantPoint(name, Side.WEIGHT) for name in ("first", "second", "third")),
    ]
    reached = [point for point in points if point.path != "third" or "third" in read.__code__.co_names]
    quantization = Quantization(model, reached, Scheme(equalize="yes"))
    with pytest.raises(UserError, match="equalize=yes: no ReLU joins two quantized layers in Readers; use equalize=no"):
        quantization.calibrate([torch.rand(2, 3, 8, 8)])


def test_several_layers_may_read_one_quantized_tensor():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)
            self.relu = nn.ReLU()

        def forward(self, x):
            x = self.relu(self.first(x))
            return self.second(x) + self.third(x)

    torch.manual_seed(0)
    model, images = Shared().double(), draw_images(size=8)
    output = QuantPoint("relu", Side.OUTPUT)
    points = [output, *(QuantPoint(name, Side.WEIGHT) for name in ("first", "second", "third"))]
    quantization = Quantization(model, points, Scheme(equalize="yes"))
    quantization.calibrate([images])
    weights = torch.cat([model.second.weight, model.third.weight])
    expected = torch.sqrt(F.relu(model.first(images)).amax((0, 2, 3)) / weights.abs().amax((0, 2, 3)))
    expected = (expected / expected.log().mean().exp()).detach()
    factors = quantization.equalization.factors
    torch.testing.assert_close(factors[output].flatten(), expected)
    for point in points[2:]:
        torch.testing.assert_close(factors[point].flatten(), 1 / expected)


def test_resnets_are_equalized_inside_their_blocks():
    model = torchvision.models.resnet50()
    joints = trace_pass(model, quant_points(model), torch.rand(1, 3, 64, 64)).joints
    blocks = [f"layer{stage}.{index}" for stage, count in enumerate((3, 4, 6, 3), 1) for index in range(count)]
    expected = {(f"{block}.conv{index}", f"{block}.conv{index + 1}") for block in blocks for index in (1, 2)}
    found = {(joint.layer, reader) for joint in joints if joint.point.bits is None for reader in joint.readers}
    assert found == expected


@pytest.mark.parametrize(
    ("build_network", "name"),
    [
        (lambda: torchvision.models.mobilenet_v2(), "MobileNetV2"),  # ReLU6 is not homogeneous
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), "VisionTransformer"),
        (lambda: torchvision.models.efficientnet_b0(), "EfficientNet"),
    ],
)
def test_networks_without_a_relu_between_layers_are_refused(build_network, name):
    quantization = Quantization(build_network().eval(), scheme=Scheme(equalize="yes"))
    with pytest.raises(UserError, match=f"no ReLU joins two quantized layers in {name}; use equalize=no"):
        quantization.calibrate([torch.rand(1, 3, 64, 64)])


def test_what_does_not_compose_is_refused():
    model = build(D2ResNet)
    scheme = Scheme(equalize="yes")
    quantization = Quantization(model, scheme=scheme)
    message = r"equalize=yes rescales channels by what calibrate\(\) observes; calibrate first"
    with pytest.raises(UserError, match=message), quantization.at(Bits(3, None)):
        pass
    with pytest.raises(ValueError, match="equalize=yes: shards would be rescaled differently"):
        quantization.merge(quantization)
    with pytest.raises(UserError, match="SSQL cannot train with equalize=yes; use equalize=no"):
        SSQL(SimSiam(build_backbone("narrow_resnet"), dim=16, hidden=8), FixedBits(LOW), scheme)
    with pytest.raises(UserError, match="analyze does not support equalize=yes; use equalize=no"):
        AnalysisSettings((LOW,), 2, 10, 3.0, 0, "cpu", scheme=scheme)
    with pytest.raises(UserError, match="unknown equalize 'yess'; did you mean 'yes'"):
        Scheme.parse("equalize=yess")


def test_rounding_is_learned_of_the_rescaled_weights():
    model, images = build(Mixed), draw_images()
    quantization = calibrate(model, [images], "weight=brecq:30, act=lsq, equalize=yes")
    blocks = [Block(name, (name,)) for name in ("conv1", "conv2", "conv3", "fc1", "fc2")]
    results = reconstruct(quantization, LOW, None, blocks, images.split(1), forward_images, Brecq())
    for point, quantizer in quantization.repairs["3w3a"].quantizers.items():
        if point.path in ("conv2", "conv3", "fc1") and point.is_weight:
            quantized = quantizer.quantize(quantization.get_weight(point), 3)
            rescaled = model.get_submodule(point.path).weight / quantization.equalization.factors[point]
            is_centred = bool((quantized.integers % 2 != 0).all())  # then the integers are odd
            largest, step = (7, 2) if is_centred else (3, 1)
            is_inside = rescaled.abs() <= largest * quantized.scale
            distance = (quantized.dequantize() - rescaled).abs() / quantized.scale
            assert is_inside.float().mean() > 0.8
            assert distance[is_inside].max() <= step + 1e-9  # rounded up or down
    assert all(result.after < 0.5 for result in results)
