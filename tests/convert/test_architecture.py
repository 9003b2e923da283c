"""Architectures against the networks themselves: every name, every shape, and which one a state dict is of."""

import functools

import pytest
import torch

from ssql_det.backbones import build_backbone
from ssql_det.convert import ARCHITECTURES, get_architecture
from ssql_det.convert.format import Layout, find_architecture, torchvision_name
from ssql_det.convert.formats import FORMATS
from ssql_det.core.errors import UserError


@functools.cache
def shapes(name):
    with torch.device("meta"):
        state = build_backbone(name).module.state_dict()
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def name(request):
    return request.param


def test_an_architecture_has_the_tensors_of_its_network_in_their_order(name):
    assert [(torchvision_name(spec), spec.shape) for spec in get_architecture(name).tensors] == list(
        shapes(name).items()
    )


def test_a_network_is_known_by_its_tensors(name):
    found = find_architecture(Layout(), shapes(name))
    assert (found.architecture.name, len(found.matched)) == (name, len(shapes(name)))
    assert (found.missing, found.mismatched) == ((), {})


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "wide_resnet50_2", "cifar_resnet18"])
def test_a_network_is_not_taken_for_a_deeper_one_whatever_their_order(arch, monkeypatch):
    monkeypatch.setattr("ssql_det.convert.format.ARCHITECTURES", dict(reversed(ARCHITECTURES.items())))
    assert find_architecture(Layout(), shapes(arch)).architecture.name == arch


def test_a_network_is_known_without_counters_too(name):
    frozen = {key: shape for key, shape in shapes(name).items() if "num_batches_tracked" not in key}
    assert find_architecture(Layout(), frozen).architecture.name == name


@pytest.mark.parametrize("format", FORMATS, ids=lambda each: each.name)
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "cifar_resnet18", "narrow_resnet"])
def test_a_network_is_known_in_any_formats_names(arch, format):
    for layouts in format.branches.values():
        for layout in layouts:
            named = {layout.get_name(spec): spec.shape for spec in get_architecture(arch).tensors}
            named.pop(None, None)
            found = find_architecture(layout, named)
            assert (found.architecture.name, found.missing, found.mismatched) == (arch, (), {})


def test_a_depth_is_that_of_the_name(name):
    if name == "narrow_resnet":
        assert get_architecture(name).depth == 10
    else:
        assert f"{get_architecture(name).depth}" in name.replace("_", "t").split("t")


def test_a_few_lost_tensors_do_not_make_it_another():
    for matched in ("resnet18", "resnet34"):
        whole = shapes(matched)
        for lost in ("layer4.1.bn2.weight", "layer1.0", "conv1.weight", "bn1"):
            found = find_architecture(
                Layout(), {key: shape for key, shape in whole.items() if not key.startswith(lost)}
            )
            assert found.architecture.name == matched, lost
            assert found.missing, lost
            assert all(key.startswith(lost) for key in found.missing)


def test_a_stem_alone_does_not_make_a_cifar_network():
    swapped = {**shapes("resnet18"), "layer1.0.conv1.weight": (64, 64, 1, 1)}
    found = find_architecture(Layout(), swapped)
    assert (found.architecture.name, list(found.mismatched)) == ("resnet18", ["layer1.0.conv1.weight"])
    assert find_architecture(Layout(), {**swapped, "conv1.weight": (64, 3, 3, 3)}).architecture.name == "cifar_resnet18"


def test_an_unknown_architecture_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"no architecture 'resnet51'; did you mean 'resnet"):
        get_architecture("resnet51")
