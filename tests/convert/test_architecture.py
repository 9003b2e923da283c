"""Architectures have the names and shapes of the real networks, and are identified by them."""

import functools

import pytest
import torch

from ssql_det.backbones import build_backbone
from ssql_det.convert import ARCHITECTURES, get_architecture
from ssql_det.convert.format import Layout, find_architecture, torchvision_name
from ssql_det.convert.formats import FORMATS
from ssql_det.core.errors import UserError

TORCHVISION = Layout()


@functools.cache
def get_shapes(name):
    with torch.device("meta"):
        state = build_backbone(name).module.state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def name(request):
    return request.param


def test_an_architecture_has_the_tensors_of_its_network_in_their_order(name):
    assert [(torchvision_name(spec), spec.shape) for spec in get_architecture(name).tensors] == list(
        get_shapes(name).items()
    )


def test_a_network_is_identified_by_its_tensors(name):
    match = find_architecture(TORCHVISION, get_shapes(name))
    assert (match.architecture.name, len(match.matched)) == (name, len(get_shapes(name)))
    assert (match.missing, match.mismatched) == ((), {})


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "wide_resnet50_2", "cifar_resnet18"])
def test_a_network_is_not_identified_as_a_deeper_one(arch, monkeypatch):
    monkeypatch.setattr("ssql_det.convert.format.ARCHITECTURES", dict(reversed(ARCHITECTURES.items())))
    assert find_architecture(TORCHVISION, get_shapes(arch)).architecture.name == arch


def test_a_network_is_identified_without_num_batches_tracked(name):
    frozen = {key: shape for key, shape in get_shapes(name).items() if "num_batches_tracked" not in key}
    assert find_architecture(TORCHVISION, frozen).architecture.name == name


@pytest.mark.parametrize("format", FORMATS, ids=lambda each: each.name)
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "cifar_resnet18", "narrow_resnet"])
def test_a_network_is_identified_by_the_names_of_any_format(arch, format):
    for layouts in format.branches.values():
        for layout in layouts:
            named = {layout.get_name(spec): spec.shape for spec in get_architecture(arch).tensors}
            named.pop(None, None)
            match = find_architecture(layout, named)
            assert (match.architecture.name, match.missing, match.mismatched) == (arch, (), {})


def test_the_depth_is_the_one_in_the_name(name):
    if name == "narrow_resnet":
        assert get_architecture(name).depth == 10
    else:
        assert f"{get_architecture(name).depth}" in name.replace("_", "t").split("t")


def test_a_network_is_identified_with_a_few_tensors_missing():
    for name in ("resnet18", "resnet34"):
        whole = get_shapes(name)
        for lost in ("layer4.1.bn2.weight", "layer1.0", "conv1.weight", "bn1"):
            match = find_architecture(
                TORCHVISION, {key: shape for key, shape in whole.items() if not key.startswith(lost)}
            )
            assert match.architecture.name == name, lost
            assert match.missing, lost
            assert all(key.startswith(lost) for key in match.missing)


def test_a_network_is_identified_with_one_wrong_shape():
    swapped = {**get_shapes("resnet18"), "layer1.0.conv1.weight": (64, 64, 1, 1)}
    match = find_architecture(TORCHVISION, swapped)
    assert (match.architecture.name, list(match.mismatched)) == ("resnet18", ["layer1.0.conv1.weight"])
    assert (
        find_architecture(TORCHVISION, {**swapped, "conv1.weight": (64, 3, 3, 3)}).architecture.name == "cifar_resnet18"
    )


def test_the_error_for_an_unknown_architecture_suggests_a_known_one():
    with pytest.raises(UserError, match=r"no architecture 'resnet51'; did you mean 'resnet"):
        get_architecture("resnet51")
