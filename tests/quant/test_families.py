"""Families of networks: their points and blocks, traced passes of them, and a family from a plugin."""

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


def timm_model(name, **options):
    return timm.create_model(name, num_classes=0, **options).eval()


def torchvision_model(name):
    model = torchvision.models.get_model(name).eval()
    for classifier in ("fc", "classifier"):
        if hasattr(model, classifier):
            setattr(model, classifier, nn.Identity())
    return model


def torchvision_vit():
    """The first two blocks of a ViT-B/16."""
    model = torchvision.models.VisionTransformer(224, 16, num_layers=2, num_heads=12, hidden_dim=768, mlp_dim=3072)
    model.heads = nn.Identity()
    return model.eval()


def trace(model, size=64):
    return trace_pass(model, quant_points(model), torch.zeros(1, 3, size, size))


def unfuse_attention(model):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def get_activation_keys(model, prefix):
    return [point.key for point in quant_points(model) if point.path.startswith(prefix) and not point.is_weight]


COVERED = {
    "resnet18": (lambda: torchvision_model("resnet18"), 64, 1.0),
    "resnet50": (lambda: torchvision_model("resnet50"), 64, 1.0),
    "timm's resnet26d": (lambda: timm_model("resnet26d"), 64, 1.0),
    "mobilenet_v2": (lambda: torchvision_model("mobilenet_v2"), 64, 1.0),
    "timm's mobilenetv2_050": (lambda: timm_model("mobilenetv2_050"), 64, 1.0),
    "timm's efficientnet_b0": (lambda: timm_model("efficientnet_b0"), 64, 1.0),
    "timm's regnety_002": (lambda: timm_model("regnety_002"), 64, 1.0),
    "ViT-B/16": (torchvision_vit, 224, 0.95),
    "timm's ViT-B/16": (lambda: timm_model("vit_base_patch16_224", depth=2), 224, 0.95),
    "timm's ViT-B/16, unfuse_attention attention": (
        lambda: unfuse_attention(timm_model("vit_base_patch16_224", depth=2)),
        224,
        1.0,
    ),
}


@pytest.mark.parametrize("name", COVERED)
def test_multiply_adds_are_quantized_or_have_a_reason(name):
    make, size, min_coverage = COVERED[name]
    model = make()
    traced = trace(model, size)
    assert traced.coverage >= min_coverage
    if min_coverage < 1:
        assert {each.float_reason for each in traced.float_operations} == {
            "a product of activations, one of which is not quantized"
        }
        assert len(traced.float_operations) in (2, 4)  # one or both products of two blocks
    counts = FlopCountAnalysis(model, torch.zeros(1, 3, size, size)).unsupported_ops_warnings(False)
    counted = counts.uncalled_modules_warnings(False).by_operator()
    with_weights = sum(each.macs for each in traced.operations if each.parameter)
    assert with_weights == pytest.approx(
        counted["conv"] + counted["linear"], rel=1e-3
    )  # fvcore does not count the class token


def test_a_classifier_stays_float():
    operations = trace(torchvision.models.resnet18()).float_operations
    assert [(each.path, each.float_reason, each.macs) for each in operations] == [
        ("fc", "fc.weight has no point", 512_000)
    ]


def test_mobilenets_of_both_libraries_have_the_same_points():
    sides = [point.key.rpartition(":")[2] for point in quant_points(torchvision_model("mobilenet_v2"))]
    assert sides == [point.key.rpartition(":")[2] for point in quant_points(timm_model("mobilenetv2_100"))]
    assert get_activation_keys(timm_model("mobilenetv2_100"), "blocks.1.1") == [
        "blocks.1.1.conv_dw:input",
        "blocks.1.1.conv_pwl:input",
        "blocks.1.1:output",
    ]
    points = quant_points(timm_model("mobilenetv2_100"))
    assert [point.key for point in points if point.bits] == ["conv_stem:weight", "bn1:output"]
    assert points[-1].key == "bn2:output"


def test_the_points_of_vision_transformers():
    assert get_activation_keys(timm_model("vit_tiny_patch16_224"), "blocks.11") == [
        *(f"blocks.11.attn/scaled_dot_product_attention[{operand}]:input" for operand in range(3)),
        *(f"blocks.11.{layer}:input" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    ]
    points = quant_points(torchvision_vit())
    assert [point.key.removeprefix("encoder.layers.encoder_layer_0.") for point in points[:8]] == [
        "conv_proj:weight",
        *("ln_1:output", "self_attention:in_proj_weight", "self_attention.out_proj:weight"),
        *("mlp.0:input", "mlp.0:weight", "mlp.3:input", "mlp.3:weight"),
    ]


@pytest.mark.parametrize("is_fused", [True, False])
def test_quantized_operands_of_functions_equal_a_reference(is_fused):
    torch.manual_seed(0)
    model = timm_model("vit_tiny_patch16_224", depth=1)
    model = model if is_fused else unfuse_attention(model)
    images = torch.randn(2, 3, 224, 224)
    attention = model.blocks[0].attn
    products = [point for point in quant_points(model) if point.function]
    quantization = Quantization(model, products)
    quantization.calibrate([images])
    qkv_outputs, proj_inputs = [], []
    handles = [
        attention.qkv.register_forward_hook(lambda module, args, output: qkv_outputs.append(output)),
        attention.proj.register_forward_pre_hook(lambda module, args: proj_inputs.append(args[0])),
    ]
    with torch.no_grad(), quantization.at(Bits(None, 4)):
        model(images)
    for handle in handles:
        handle.remove()
    query, key, value = qkv_outputs[0].reshape(2, 197, 3, 3, 64).permute(2, 0, 3, 1, 4).unbind(0)
    quantizers = [quantization[point] for point in products]
    if is_fused:
        query, key, value = (quantizer(x, 4) for quantizer, x in zip(quantizers, (query, key, value), strict=True))
        expected = nn.functional.scaled_dot_product_attention(query, key, value)
    else:
        scores = quantizers[0](query * attention.scale, 4) @ quantizers[1](key.transpose(-2, -1), 4)
        expected = quantizers[2](scores.softmax(-1), 4) @ quantizers[3](value, 4)
    torch.testing.assert_close(proj_inputs[0], expected.transpose(1, 2).reshape(2, 197, 192))


def test_function_points_ignore_child_modules_and_select_calls():
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
        assert [bound.item() for bound in quantization[point].observer.range] == [min(expected), max(expected)]
    model.inner.forward = lambda x: torch.zeros(2, 3) @ torch.zeros(2)
    with pytest.raises(RuntimeError), quantization.observing():
        model(torch.zeros(1))
    assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit", "regnet_y_400mf"])
def test_each_layer_with_a_point_is_in_one_block(name):
    model = torchvision_vit() if name == "vit" else torchvision_model(name)
    parts = find_blocks(model)
    for point in quant_points(model):
        if point.is_weight:
            assert sum(point.path == part or point.path.startswith(f"{part}.") for part in parts) == 1, point


def test_chains_hold_the_norm_activation_and_point_after_a_layer():
    chains = {chain.layer: chain for chain in trace(CifarResNet(), 16).chains}
    first, last = chains["layer2.0.conv1"], chains["layer2.0.conv2"]
    assert (first.input_point.key, first.norm, first.activation) == ("layer1.0:output", "layer2.0.bn1", "relu")
    assert first.output_point.key == last.input_point.key == "layer2.0.conv2:input"
    assert (last.norm, last.activation, last.output_point) == ("layer2.0.bn2", "", None)  # followed by an addition
    assert chains["layer2.0.shortcut.0"].norm == "layer2.0.shortcut.1"


def test_a_layer_whose_output_is_read_twice_has_no_norm_to_fold():
    class ReadTwice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    (chain,) = trace_pass(ReadTwice(), quant_points(ReadTwice()), torch.zeros(1, 3, 4, 4)).chains
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


def test_a_family_of_a_plugin_is_tried_first(caplog):
    class CustomNet(nn.Sequential):
        """A network of a user."""

    class CustomFamily(Family):
        def matches(self, model):
            return isinstance(model, CustomNet)

        def find_points(self, model, placement, image_range):
            yield QuantPoint("0", Side.WEIGHT)

        def find_blocks(self, model):
            yield "0"

    caplog.set_level(logging.INFO, "ssql_det")
    model = CustomNet(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    FAMILIES.register("custom")(CustomFamily())
    try:
        assert [point.key for point in quant_points(model)] == ["0:weight"]
        assert isinstance(find_family(model), CustomFamily)
        assert find_blocks(model) == ("0",)
        assert "CustomNet: layers without a point, which stay float: 1" in caplog.text
    finally:
        FAMILIES._objects.pop("custom")
    assert len(quant_points(model)) == 3
