"""Backbones by name: feature widths, layers and names."""

import pytest
import torch
import torchvision
from torch import nn

from ssql_det.backbones import (
    BACKBONES,
    build_backbone,
    describe_expected_state,
    describe_state_dict,
    find_state_differences,
)
from ssql_det.core.errors import UserError

TORCHVISION_NETWORKS = [
    ("mobilenet_v2", 1280, 64),
    ("mobilenet_v3_small", 1024, 64),
    ("efficientnet_b0", 1280, 64),
    ("regnet_y_400mf", 440, 64),
    ("shufflenet_v2_x0_5", 1024, 64),
    ("squeezenet1_1", 512, 64),
    ("mnasnet0_5", 1280, 64),
    ("convnext_tiny", 768, 64),
    ("googlenet", 1024, 64),
    ("alexnet", 4096, 64),
]


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512),
        ("resnet50", 2048),
        ("cifar_resnet18", 512),
        ("narrow_resnet", 192),
        ("timm/resnet26d", 2048),
        ("timm/mobilenetv3_small_050", 1024),
    ],
)
def test_features_have_the_width_of_the_backbone(name, width):
    backbone = build_backbone(name)
    assert backbone.feature_dim == width
    assert backbone.module.eval()(torch.randn(2, 3, 32, 32)).shape == (2, width)


@pytest.mark.parametrize(("name", "width", "size"), TORCHVISION_NETWORKS)
def test_a_network_of_torchvision_has_no_classifier(name, width, size):
    """Nor the dropout before it, so that features are the same in training mode."""
    backbone = build_backbone(name)
    assert backbone.feature_dim == width
    assert backbone.module(torch.randn(2, 3, size, size)).shape == (2, width)
    dropouts = [each for each in backbone.module.modules() if isinstance(each, torch.nn.Dropout) and each.p]
    assert bool(dropouts) == (name == "alexnet")  # between layers that stay


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_layers_are_torchvisions_without_the_classifier(name):
    with torch.device("meta"):
        reference = torchvision.models.get_model(name).state_dict()
        actual = build_backbone(name).module.state_dict()
    assert {key: value.shape for key, value in actual.items()} == {
        key: value.shape for key, value in reference.items() if not key.startswith("fc.")
    }


def test_a_cifar_stem_keeps_the_resolution():
    module = build_backbone("cifar_resnet18").module
    x = torch.randn(1, 3, 32, 32)
    stem = module.maxpool(module.relu(module.bn1(module.conv1(x))))
    assert module.layer1(stem).shape == (1, 64, 32, 32)
    assert module.layer4(module.layer3(module.layer2(module.layer1(stem)))).shape == (1, 512, 4, 4)


def test_narrow_resnet_has_the_layers_of_a_resnet():
    narrow, resnet = build_backbone("narrow_resnet").module, torchvision.models.resnet18()
    assert narrow.conv1.weight.shape[1:] == resnet.conv1.weight.shape[1:]
    widths = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        actual, reference = getattr(narrow, stage)[0], getattr(resnet, stage)[0]
        for conv in ("conv1", "conv2"):
            for attribute in ("kernel_size", "stride", "padding"):
                assert getattr(getattr(actual, conv), attribute) == getattr(getattr(reference, conv), attribute)
        assert (actual.downsample is None) == (reference.downsample is None)
        widths.append(actual.conv2.out_channels)
    assert widths[0] == narrow.conv1.out_channels == 24
    assert widths == sorted(set(widths))
    assert set(narrow.state_dict()) < set(resnet.state_dict())
    assert sum(parameter.numel() for parameter in narrow.parameters()) < 1e6


@pytest.mark.parametrize("name", ["resnet50", "cifar_resnet18", "narrow_resnet", "timm/resnet18"])
def test_residual_branches_can_start_at_zero(name):
    last = "bn3" if name == "resnet50" else "bn2"
    for zero in (False, True):
        block = build_backbone(name, zero_init_residual=zero).module.layer2[0]
        assert bool((getattr(block, last).weight == 0).all()) is zero


def test_zero_init_residual_needs_residual_branches():
    with pytest.raises(UserError, match="no residual branches"):
        build_backbone("timm/mobilenetv3_small_050", zero_init_residual=True)
    with pytest.raises(UserError, match="mobilenet_v2 has no residual branches"):
        build_backbone("mobilenet_v2", zero_init_residual=True)


def test_an_unsupported_image_size_is_refused():
    backbone = build_backbone("timm/vit_tiny_patch16_224")
    backbone.require_size(224)
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224 cannot take images of 64 pixels: .*224"):
        backbone.require_size(64)
    assert backbone.module.training


UNKNOWN_NAMES = [
    ("resnet81", "mean 'resnet"),
    ("cifar_resnet81", "mean 'cifar_resnet"),
    ("mobilenetv2_050", "mean 'timm/mobilenetv2_050'"),
    ("timm/resnet9999", "mean 'timm/resnet"),
    ("timm/resnet50.my_weights", "mean 'timm/resnet50"),
    ("timm/hf-hub:somebody/net", "load one of your own with --plugin"),
    ("", "known: torchvision's models"),
]


@pytest.mark.parametrize(("name", "hint"), UNKNOWN_NAMES)
def test_the_error_for_an_unknown_name_suggests_a_known_one(name, hint):
    with pytest.raises(UserError, match=f"no backbone '{name}'.*{hint}"):
        build_backbone(name)


def make_network(width):
    layers = nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers)


def test_a_registered_network_is_built_by_name(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_objects", dict(BACKBONES._objects))

    @BACKBONES.register("my_backbone")
    def my_backbone(zero_init_residual):
        return make_network(8), 8

    @BACKBONES.register("wrong_net")
    def wrong_net(zero_init_residual):
        return make_network(8), 9

    backbone = build_backbone("my_backbone")
    assert (backbone.name, backbone.feature_dim) == ("my_backbone", 8)
    backbone.require_size(16)
    with pytest.raises(UserError, match=r"wrong_net returns features of shape \[1, 8\] for one .* says \[1, 9\]"):
        build_backbone("wrong_net").require_size(16)
    with pytest.raises(UserError, match="no backbone 'my_nett'; did you mean 'my_backbone'"):
        build_backbone("my_nett")
    with pytest.raises(ValueError, match="backbone 'resnet18' is already registered"):
        BACKBONES.register("resnet18")(my_backbone)


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet18", "timm/vit_tiny_patch16_224", "regnet_y_400mf"])
def test_the_expected_state_is_described_without_random_numbers(name):
    before = torch.get_rng_state()
    expected = describe_expected_state(name)
    assert torch.equal(torch.get_rng_state(), before)
    state = describe_state_dict(build_backbone(name).module.state_dict())
    assert expected == state
    first, second, *_ = state
    other = {**state, first: "int64 [3]", "more": "float32 [1]"}
    del other[second]
    assert find_state_differences(other, state) == [
        f"{first} is int64 [3], not {state[first]}",
        f"{second} is missing, not {state[second]}",
        "more is unexpected",
    ]
