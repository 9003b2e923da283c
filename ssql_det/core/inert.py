"""What a file's objects of classes that are not imported become: they store their state and do nothing."""

from __future__ import annotations

from typing import Any

from ssql_det.core.reading_budget import ELEMENT, Budget, RefusedError


class InertObject:
    """Replaces an object of a class that is not imported, and stores what the file would have put into it."""

    name = "?"
    args: tuple[Any, ...]  # positional arguments of its class
    state: Any  # set by the file; else the keyword arguments
    entries: dict[Any, Any]  # of a dict subclass
    elements: list[Any]  # of a list subclass

    def __new__(cls, *args: Any, **kwargs: Any) -> InertObject:
        instance = super().__new__(cls)
        instance.args, instance.state, instance.entries, instance.elements = args, kwargs, {}, []
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept the arguments of any class; ``__new__`` has stored them."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    def extend(self, values: Any) -> None:
        self.elements.extend(values)

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


def make_inert_class(name: str) -> type[InertObject]:
    return type("InertObject", (InertObject,), {"name": name})


def is_inert_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, InertObject)


def reconstruct(budget: Budget, kind: type[InertObject], base: Any, value: Any) -> Any:
    """Make an object as pickle protocols 0 and 1 do: ``value`` is the content of its built-in base class."""
    if not is_inert_class(kind):
        raise RefusedError("it makes an object of a built-in class in a way that a checkpoint never does")
    instance = kind()
    if isinstance(value, dict):
        budget.charge(ELEMENT * len(value))
        budget.check_keys(value, value)
        instance.entries.update(value)
    elif isinstance(value, list):
        budget.charge(ELEMENT * len(value))
        instance.elements.extend(value)
    elif value is not None:
        instance.args = (value,)
    return instance


def get_enum_member(budget: Budget, kind: Any = None, name: Any = None) -> InertObject:
    """Some versions of Python pickle an enumeration's member as ``getattr(CLASS, NAME)``; the class is inert here."""
    if not is_inert_class(kind):
        raise RefusedError("it calls 'builtins.getattr', which a checkpoint never does")
    return kind(name)


REPLACEMENTS = {  # by the module and name that a pickle has
    ("builtins", "getattr"): get_enum_member,
    ("copyreg", "_reconstructor"): reconstruct,
}
