"""Families of networks: their points, their blocks, what a traced pass finds of them, and a family from outside."""

import logging

import pytest
import timm
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from support.networks import CifarResNet
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.quant import FAMILIES, Bits, Family, Quantization, QuantPoint, Side, profile_cost, quant_points
from ssql_det.quant.points import find_blocks
from ssql_det.quant.points.family import find_family
from ssql_det.quant.tracing import trace_pass


def timms(name, **others):
    return timm.create_model(name, num_classes=0, **others).eval()


def torchvisions(name):
    model = torchvision.models.get_model(name).eval()
    for classifier in ("fc", "classifier", "heads"):
        if hasattr(model, classifier):
            setattr(model, classifier, nn.Identity())
    return model


def traced(model, size=64):
    return trace_pass(model, quant_points(model), torch.zeros(1, 3, size, size))


def unfused(model):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def activations(model, beginning):
    return [point.key for point in quant_points(model) if point.path.startswith(beginning) and not point.is_weight]


COVERED = {
    "resnet18": (lambda: torchvisions("resnet18"), 64, 1.0),
    "resnet50": (lambda: torchvisions("resnet50"), 64, 1.0),
    "timm's resnet26d": (lambda: timms("resnet26d"), 64, 1.0),
    "mobilenet_v2": (lambda: torchvisions("mobilenet_v2"), 64, 1.0),
    "timm's mobilenetv2_050": (lambda: timms("mobilenetv2_050"), 64, 1.0),
    "timm's efficientnet_b0": (lambda: timms("efficientnet_b0"), 64, 1.0),
    "timm's regnety_002": (lambda: timms("regnety_002"), 64, 1.0),
    "ViT-B/16": (lambda: torchvisions("vit_b_16"), 224, 0.95),
    "timm's ViT-B/16": (lambda: timms("vit_base_patch16_224"), 224, 0.95),
    "timm's ViT-B/16, its products apart": (lambda: unfused(timms("vit_base_patch16_224")), 224, 1.0),
}


@pytest.mark.parametrize("name", COVERED)
def test_multiply_adds_belong_to_points_or_are_named(name):
    make, size, least = COVERED[name]
    model = make()
    trace = traced(model, size)
    assert trace.coverage >= least
    if least < 1:
        assert {each.reason for each in trace.float_operations} == {
            "a product of activations, one of which is not quantized"
        }
        assert len(trace.float_operations) in (12, 24)  # of twelve blocks, one product or both
    counts = FlopCountAnalysis(model, torch.zeros(1, 3, size, size)).unsupported_ops_warnings(False)
    counted = counts.uncalled_modules_warnings(False).by_operator()
    with_weights = sum(each.macs for each in trace.operations if each.parameter)
    assert with_weights == pytest.approx(counted["conv"] + counted["linear"], rel=1e-3)  # a class token has no count


def test_a_classifier_outside_is_named():
    left = traced(torchvision.models.resnet18()).float_operations
    assert [(each.path, each.reason, each.macs) for each in left] == [("fc", "fc.weight has no point", 512_000)]


def test_mobilenets_of_both_libraries_have_the_same_points():
    ours = [point.key.rpartition(":")[2] for point in quant_points(torchvisions("mobilenet_v2"))]
    assert ours == [point.key.rpartition(":")[2] for point in quant_points(timms("mobilenetv2_100"))]
    assert activations(timms("mobilenetv2_100"), "blocks.1.1") == [
        "blocks.1.1.conv_dw:input",
        "blocks.1.1.conv_pwl:input",
        "blocks.1.1:output",
    ]
    points = quant_points(timms("mobilenetv2_100"))
    assert [point.key for point in points if point.bits] == ["conv_stem:weight", "bn1:output"]
    assert points[-1].key == "bn2:output"


def test_the_points_of_vision_transformers():
    assert activations(timms("vit_tiny_patch16_224"), "blocks.11") == [
        *(f"blocks.11.attn/scaled_dot_product_attention[{operand}]:input" for operand in range(3)),
        *(f"blocks.11.{layer}:input" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    ]
    theirs = quant_points(torchvisions("vit_b_16"))
    assert [point.key.removeprefix("encoder.layers.encoder_layer_0.") for point in theirs[:8]] == [
        "conv_proj:weight",
        *("ln_1:output", "self_attention:in_proj_weight", "self_attention.out_proj:weight"),
        *("mlp.0:input", "mlp.0:weight", "mlp.3:input", "mlp.3:weight"),
    ]


@pytest.mark.parametrize("is_fused", [True, False])
def test_operands_of_functions_are_quantized_as_written_out(is_fused):
    torch.manual_seed(0)
    model = timms("vit_tiny_patch16_224", depth=1)
    model = model if is_fused else unfused(model)
    images = torch.randn(2, 3, 224, 224)
    attention = model.blocks[0].attn
    products = [point for point in quant_points(model) if point.function]
    quantization = Quantization(model, products)
    quantization.calibrate([images])
    given, seen = [], []
    handles = [
        attention.qkv.register_forward_hook(lambda module, args, output: given.append(output)),
        attention.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
    ]
    with torch.no_grad(), quantization.at(Bits(None, 4)):
        model(images)
    for handle in handles:
        handle.remove()
    query, key, value = given[0].reshape(2, 197, 3, 3, 64).permute(2, 0, 3, 1, 4).unbind(0)
    rounded = [quantization[point] for point in products]
    if is_fused:
        query, key, value = (each(x, 4) for each, x in zip(rounded, (query, key, value), strict=True))
        expected = nn.functional.scaled_dot_product_attention(query, key, value)
    else:
        likeness = rounded[0](query * attention.scale, 4) @ rounded[1](key.transpose(-2, -1), 4)
        expected = rounded[2](likeness.softmax(-1), 4) @ rounded[3](value, 4)
    torch.testing.assert_close(seen[0], expected.transpose(1, 2).reshape(2, 197, 192))


def test_a_function_inside_another_module_is_not_meant_and_calls_are_counted():
    class Inner(nn.Module):
        def forward(self, x):
            return x + 1

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            x = self.inner(x) + x
            return x + x

    model = Outer()
    for call, expected in ((None, [1.0, 2.0]), (0, [1.0]), (1, [2.0])):
        point = QuantPoint("", Side.OUTPUT, function="add", call=call)
        quantization = Quantization(model, [point])
        with quantization.observing():
            model(torch.zeros(1))
        assert [end.item() for end in quantization[point].observer.range] == [min(expected), max(expected)]
    model.inner.forward = lambda x: torch.zeros(2, 3) @ torch.zeros(2)
    with pytest.raises(RuntimeError), quantization.observing():
        model(torch.zeros(1))
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16", "regnet_y_400mf"])
def test_each_layer_with_a_point_is_in_one_block(name):
    model = torchvisions(name)
    parts = find_blocks(model)
    for point in quant_points(model):
        if point.is_weight:
            assert sum(point.path == part or point.path.startswith(f"{part}.") for part in parts) == 1, point


def test_chains_follow_a_layer_to_its_norm_its_activation_and_its_point():
    chains = {chain.layer: chain for chain in traced(CifarResNet(), 16).chains}
    first, last = chains["layer2.0.conv1"], chains["layer2.0.conv2"]
    assert (first.source.key, first.norm, first.activation) == ("layer1.0:output", "layer2.0.bn1", "relu")
    assert first.point.key == last.source.key == "layer2.0.conv2:input"
    assert (last.norm, last.activation, last.point) == ("layer2.0.bn2", "", None)  # it is added up
    assert chains["layer2.0.shortcut.0"].norm == "layer2.0.shortcut.1"


def test_nothing_is_folded_into_a_layer_whose_result_is_read_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    (chain,) = trace_pass(Twice(), quant_points(Twice()), torch.zeros(1, 3, 4, 4)).chains
    assert (chain.layer, chain.norm) == ("conv", "")


def test_a_point_that_is_never_reached_is_an_error():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(UserError, match=r"Unused never reaches unused:input \(2 such point\(s\)\)"):
        profile_cost(Unused(), quant_points(Unused()), torch.zeros(1, 3, 4, 4))


def test_a_family_from_outside_comes_first(caplog):
    class Named(nn.Sequential):
        """A network of a user's."""

    class Mine(Family):
        def matches(self, model):
            return isinstance(model, Named)

        def find_points(self, model, placement, image_range):
            yield QuantPoint("0", Side.WEIGHT)

        def find_blocks(self, model):
            yield "0"

    caplog.set_level(logging.INFO, "ssql_det")
    model = Named(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    FAMILIES.register("mine")(Mine())
    try:
        assert [point.key for point in quant_points(model)] == ["0:weight"]
        assert isinstance(find_family(model), Mine)
        assert find_blocks(model) == ("0",)
        assert "Named: 1 stay float" in caplog.text
    finally:
        FAMILIES._parts.pop("mine")
    assert len(quant_points(model)) == 3
