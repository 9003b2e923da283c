"""Size, multiply-adds and bit-operations, compared with fvcore and with numbers computed by hand."""

import itertools

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from support.networks import CifarResNet, D2ResNet, PlainNet

from ssql_det.quant import Bits, profile_cost, quant_points
from ssql_det.quant.points import assign_bits, matches_pattern


def profile(model, size=64):
    return profile_cost(model.eval(), quant_points(model), torch.zeros(1, 3, size, size))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_multiply_adds_equal_fvcores(name):
    model = torchvision.models.get_model(name).eval()
    counted = FlopCountAnalysis(model, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False).by_operator()
    assert profile(model).at(Bits.FP).macs == counted["conv"] + counted["linear"]


def test_multiply_adds_of_transposed_convs_and_linears():
    model = PlainNet()
    cost = profile(model, size=8).at(Bits.FP)
    encode, decode, head = 16 * 6 * 27, 16 * 6 * (4 * 4), 4 * 5
    assert cost.macs == encode + decode + head
    counted = FlopCountAnalysis(model, torch.zeros(1, 3, 8, 8)).unsupported_ops_warnings(False).by_operator()
    assert cost.macs == sum(counted[kind] for kind in ("conv", "conv_transpose", "linear") if kind in counted)


def test_size_is_quantized_weights_a_scale_per_channel_and_float_parameters():
    model = torchvision.models.resnet18()
    cost = profile(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    stem = model.conv1.weight.numel()
    convs = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    quantized = sum(layer.weight.numel() for layer in convs)
    scales = sum(layer.out_channels for layer in convs)
    assert cost.at(Bits.FP).bytes == 4 * total
    assert cost.at(Bits(4, 4)).bytes == 4 * (total - quantized) + stem + (quantized - stem) // 2 + 4 * scales
    assert cost.at(Bits(None, 4)).bytes == 4 * total


@pytest.mark.parametrize("make", [torchvision.models.resnet18, torchvision.models.resnet50, CifarResNet, D2ResNet])
def test_every_conv_of_a_resnet_but_the_first_has_a_quantized_input(make):
    operations = profile(make()).trace.operations
    convs = [each for each in operations if each.path not in ("fc", "linear")]
    assert [each.path for each in convs if each.input_points[0] is None] == [operations[0].path]
    assert [each.path for each in operations if each.reads_image] == [operations[0].path]
    after_stem = [each.path for each in operations if each.input_points[0] and each.input_points[0].bits == 8]
    assert after_stem[0].endswith("0.conv1") or after_stem[0].endswith("0.shortcut")


def test_bit_operations_equal_those_by_hand():
    cost = profile(CifarResNet(), size=16)
    macs = {each.path: each.macs for each in cost.trace.operations}
    pixels = 16 * 16
    assert macs["conv1"] == pixels * 8 * 27
    first_stage = pixels * 8 * 8 * 9
    second = 64 * 16 * 8 * 9, 64 * 16 * 16 * 9, 64 * 16 * 8
    linear = 16 * 10
    expected = {
        Bits.FP: 32 * 32 * sum(macs.values()),
        # stem 8x8 on the image; its output is 8 bits; all others 2x4; the classifier is float
        Bits(2, 4): macs["conv1"] * 64 + first_stage * (2 * 8 + 2 * 4) + sum(second) * 8 + linear * 1024,
        Bits(8, None): macs["conv1"] * 64 + (2 * first_stage + sum(second)) * 8 * 32 + linear * 1024,
    }
    assert {bits: cost.at(bits).bit_ops for bits in expected} == expected


def test_overrides_change_the_cost():
    cost = profile(CifarResNet(), size=16)
    assert cost.at(Bits(4, 4), {"*": Bits(8, 8)}) == cost.at(Bits(8, 8))
    assert cost.at(Bits(4, 4)) != cost.at(Bits(4, 4), {"layer2.*": Bits(8, 8)}) != cost.at(Bits(8, 8))


def test_a_tensor_changed_in_place_is_no_longer_quantized():
    class Shifted(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.first, self.second, self.shift = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), shift

        def forward(self, x):
            x = self.hidden(self.first(x))
            return self.second(x.add_(1) if self.shift else x.relu_().view(1, 4))

    from ssql_det.quant import QuantPoint, Side

    for shift, expected in ((True, None), (False, "hidden:output")):
        model = Shifted(shift)
        model.hidden = torch.nn.Identity()
        points = [QuantPoint("second", Side.WEIGHT), QuantPoint("hidden", Side.OUTPUT)]
        input_point = profile_cost(model, points, torch.zeros(1, 4)).trace.operations[-1].input_points[0]
        assert (input_point and input_point.key) == expected


def test_profiling_leaves_no_hook():
    model = CifarResNet()
    profile(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_parts_of_a_cost_add_up_to_the_whole():
    """Layers whose inputs another group, or none, quantizes; at float too."""
    cost = profile(D2ResNet())
    patterns = ["res2.0*", "res2.1*", "res3.*"]
    widths = [Bits.FP, Bits(2, 8), Bits(8, 4)]

    def members(pattern, bits):
        assigned = assign_bits(cost.points, Bits.FP, {pattern: bits})
        return {point: assigned[point] for point in cost.points if matches_pattern(point, pattern)}

    choices = [[members(pattern, bits) for bits in widths] for pattern in patterns]
    inside = {point for group in choices for point in group[0]}
    others = {point: bits for point, bits in assign_bits(cost.points, Bits(5, 6)).items() if point not in inside}
    assert others
    num_bytes, bit_ops = cost.split(choices, others)
    assert bit_ops.pairs
    for picked in itertools.product(range(3), repeat=3):
        overrides = {pattern: widths[choice] for pattern, choice in zip(patterns, picked, strict=True)}
        whole = cost.at(Bits(5, 6), overrides)
        assert (num_bytes(picked), bit_ops(picked)) == (whole.bytes, whole.bit_ops)
