"""Parts by name: what is registered is found, and what is not is answered with what there is."""

import pytest

from ssql_det.core.errors import UserError
from ssql_det.core.registry import Registry


@pytest.fixture
def methods():
    table = Registry("method")
    for name in ("simsiam", "byol"):
        table.register(name)(name.upper())
    return table


def test_what_is_registered_is_found(methods):
    assert methods.get("byol") == "BYOL"
    assert "byol" in methods
    assert "BYOL" not in methods
    assert list(methods) == ["byol", "simsiam"]  # whatever the order of imports


def test_what_is_decorated_stays_what_it_is():
    table = Registry("method")

    @table.register("moco")
    class MoCo:
        pass

    assert isinstance(MoCo, type)
    assert table.get("moco") is MoCo


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("simsam", "unknown method 'simsam'; did you mean 'simsiam'? (known: byol, simsiam)"),
        ("SimSiam", "unknown method 'SimSiam'; did you mean 'simsiam'? (known: byol, simsiam)"),
        ("xyz", "unknown method 'xyz' (known: byol, simsiam)"),
        ("", "unknown method '' (known: byol, simsiam)"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(methods, name, said):
    with pytest.raises(UserError) as refusal:
        methods.get(name)
    assert str(refusal.value) == said


def test_a_name_is_given_once(methods):
    with pytest.raises(ValueError, match="there is a method 'byol' already: 'BYOL'"):
        methods.register("byol")("another")
    assert methods.get("byol") == "BYOL"


def test_tables_have_nothing_in_common(methods):
    other = Registry("loss")
    assert list(other) == []
    with pytest.raises(UserError, match=r"unknown loss 'byol' \(known: \)"):
        other.get("byol")
