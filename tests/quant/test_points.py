"""The quantization points of each kind of ResNet, and the bits assigned to them."""

import logging

import pytest
import timm
import torch.fx
import torchvision
from support.networks import CifarResNet, D2ResNet, PlainNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, QuantPoint, Side, quant_points
from ssql_det.quant.points import assign_bits


def get_keys(points, side=None):
    return [point.key for point in points if side is None or point.side is side]


def get_activation_keys(points):
    return [point.key for point in points if not point.is_weight]


def test_torchvision_basic_blocks():
    points = quant_points(torchvision.models.resnet18())
    assert get_activation_keys(points)[:5] == [
        "relu:output",
        "layer1.0.conv2:input",
        "layer1.0:output",
        "layer1.1.conv2:input",
        "layer1.1:output",
    ]
    assert len(get_activation_keys(points)) == 1 + 8 * 2
    assert len(get_keys(points, Side.WEIGHT)) == 20  # every conv, the three shortcuts included, not fc
    assert "fc:weight" not in get_keys(points)


def test_torchvision_bottlenecks():
    points = quant_points(torchvision.models.resnet50())
    assert get_activation_keys(points)[1:4] == ["layer1.0.conv2:input", "layer1.0.conv3:input", "layer1.0:output"]
    assert len(get_activation_keys(points)) == 1 + 16 * 3
    assert len(get_keys(points, Side.WEIGHT)) == 53


def test_only_the_stem_has_fixed_bits():
    points = quant_points(torchvision.models.resnet18())
    assert {point.key: point.bits for point in points if point.bits} == {"conv1:weight": 8, "relu:output": 8}


def test_timm_resnets_have_the_same_points_as_torchvisions():
    expected = [key.replace("relu:", "act1:") for key in get_keys(quant_points(torchvision.models.resnet50()))]
    assert get_keys(quant_points(timm.create_model("resnet50"))) == expected


def test_a_stem_of_several_convs_has_points_at_eight_bits():
    points = quant_points(timm.create_model("resnet26d"))
    stem = [(point.key, point.bits) for point in points if point.path.startswith(("conv1", "act1"))]
    assert stem == [
        ("conv1.0:weight", 8),
        ("conv1.3:input", 8),
        ("conv1.3:weight", 8),
        ("conv1.6:input", 8),
        ("conv1.6:weight", 8),
        ("act1:output", 8),
    ]


def test_a_cifar_net_with_functional_relu_has_its_stem_point_before_the_first_stage():
    points = quant_points(CifarResNet())
    assert get_activation_keys(points) == [
        "layer1:input",
        "layer1.0.conv2:input",
        "layer1.0:output",
        "layer2.0.conv2:input",
        "layer2.0:output",
    ]
    assert "layer2.0.shortcut.0:weight" in get_keys(points)


def test_detectron2_resnets_have_norms_inside_convs_and_a_pool_inside_the_stem():
    points = quant_points(D2ResNet())
    assert get_activation_keys(points)[:4] == [
        "stem:output",
        "res2.0.conv2:input",
        "res2.0.conv3:input",
        "res2.0:output",
    ]
    assert [point.key for point in points if point.include_zero] == ["stem:output"]
    assert {"stem.conv1:weight", "res2.0.shortcut:weight"} < set(get_keys(points))


def test_a_resnet_inside_another_module_is_found_and_other_layers_are_logged(caplog):
    caplog.set_level(logging.INFO, "ssql_det")
    outer = nn.ModuleDict({"encoder": torchvision.models.resnet18(), "head": nn.Linear(1000, 10)})
    points = quant_points(outer)
    assert points[0].key == "encoder.conv1:weight"
    assert all(point.path.startswith("encoder.") for point in points)
    assert "stay float: encoder.fc, head" in caplog.text


def test_the_generic_rule_logs_a_warning(caplog):
    points = quant_points(PlainNet())
    assert get_keys(points) == ["encode:weight", "decode:input", "decode:weight", "head:input", "head:weight"]
    assert [point.bits for point in points] == [8, None, None, 8, 8]
    assert "generic rule" in caplog.text


def test_a_network_with_conv1_and_conv2_is_not_a_residual_block():
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.fc = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(16, 10)

    assert get_keys(quant_points(LeNet()))[-1] == "fc:weight"


def test_pre_activation_blocks_get_the_generic_rule(caplog):
    points = quant_points(timm.create_model("resnetv2_50"))
    assert "generic rule" in caplog.text
    assert not get_keys(points, Side.OUTPUT)


def test_a_traced_graph_is_an_error():
    with pytest.raises(UserError, match="find the points of the original model"):
        quant_points(torch.fx.symbolic_trace(torchvision.models.resnet18()))


def test_a_network_without_layers_is_an_error():
    with pytest.raises(UserError, match="Sequential has nothing to quantize"):
        quant_points(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))


# ---- assigned bits --------------------------------------------------------------------------------------------

POINTS = (
    QuantPoint("conv1", Side.WEIGHT, 8),
    QuantPoint("relu", Side.OUTPUT, 8),
    QuantPoint("layer1.0.conv1", Side.WEIGHT),
    QuantPoint("layer1.0", Side.OUTPUT),
    QuantPoint("layer2.0", Side.OUTPUT),
)


def get_assigned_bits(bits, overrides=None):
    return list(assign_bits(POINTS, bits, overrides).values())


def test_fixed_bits_are_used_where_weights_or_activations_are_quantized():
    assert get_assigned_bits(Bits(2, 4)) == [8, 8, 2, 4, 4]
    assert get_assigned_bits(Bits(8, None)) == [8, None, 8, None, None]
    assert get_assigned_bits(Bits.FP) == [None] * 5


def test_overrides_are_patterns_and_the_last_match_is_used():
    assert get_assigned_bits(Bits(2, 4), {"layer1.*": Bits(8, 8), "layer?.0": Bits(5, None)}) == [8, 8, 8, None, None]
    assert get_assigned_bits(Bits(2, 4), {"conv1": Bits(4, 4)}) == [4, 8, 2, 4, 4]


def test_an_override_quantizes_one_point_of_a_float_network():
    assert get_assigned_bits(Bits.FP, {"layer1.0.conv1": Bits(3, None)}) == [None, None, 3, None, None]


def test_an_override_that_matches_nothing_is_an_error_with_the_closest_path():
    with pytest.raises(UserError, match=r"override 'layer1.0.conv3'; did you mean 'layer1.0.conv1'\?"):
        get_assigned_bits(Bits(4, 4), {"layer1.0.conv3": Bits(8, 8)})


def test_a_pattern_with_a_colon_names_single_points():
    points = [QuantPoint("a.conv", Side.INPUT), QuantPoint("a.conv", Side.OUTPUT, 8), QuantPoint("a.conv", Side.WEIGHT)]
    four, eight = Bits(4, 4), Bits(8, 8)
    assert list(assign_bits(points, four, {"a.*": four}).values()) == [4, 4, 4]
    assert list(assign_bits(points, four, {"a.*": four, "a.*:output": eight}).values()) == [4, 8, 4]
    assert list(assign_bits(points, Bits.FP, {"*:weight": eight}).values()) == [None, None, 8]
    with pytest.raises(UserError, match=r"matches the override 'a.conv:outputs'; did you mean 'a.conv:output'\?"):
        assign_bits(points, four, {"a.conv:outputs": eight})
