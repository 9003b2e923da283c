"""Registered names are found; an error for an unknown name lists the known ones."""

import pytest

from ssql_det.core.errors import UserError
from ssql_det.core.registry import Registry, import_plugins


@pytest.fixture
def methods():
    registry = Registry("method")
    for name in ("simsiam", "byol"):
        registry.register(name)(name.upper())
    return registry


def test_a_registered_name_is_found(methods):
    assert methods.get("byol") == "BYOL"
    assert "byol" in methods
    assert "BYOL" not in methods
    assert list(methods) == ["byol", "simsiam"]  # in any order of imports


def test_the_decorator_returns_the_class_itself():
    registry = Registry("method")

    @registry.register("moco")
    class MoCo:
        pass

    assert isinstance(MoCo, type)
    assert registry.get("moco") is MoCo


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simsam", "unknown method 'simsam'; did you mean 'simsiam'? (known: byol, simsiam)"),
        ("SimSiam", "unknown method 'SimSiam'; did you mean 'simsiam'? (known: byol, simsiam)"),
        ("xyz", "unknown method 'xyz' (known: byol, simsiam)"),
        ("", "unknown method '' (known: byol, simsiam)"),
    ],
)
def test_the_error_for_an_unknown_name_suggests_the_nearest(methods, name, message):
    with pytest.raises(UserError) as refusal:
        methods.get(name)
    assert str(refusal.value) == message


def test_a_name_cannot_be_registered_twice(methods):
    with pytest.raises(ValueError, match="method 'byol' is already registered: 'BYOL'"):
        methods.register("byol")("another")
    assert methods.get("byol") == "BYOL"


def test_registries_are_independent(methods):
    other = Registry("loss")
    assert list(other) == []
    with pytest.raises(UserError, match=r"unknown loss 'byol' \(known: \)"):
        other.get("byol")


@pytest.mark.parametrize("name", ["", ".", "..methods"])
def test_a_relative_plugin_is_refused(name):
    with pytest.raises(UserError, match=rf"^'{name}' is no name of a plugin; name its module in full"):
        import_plugins([name])
