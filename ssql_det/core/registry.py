"""Parts by name: each file of a kind registers its own, and a lookup that fails names the nearest.

>>> METHODS: Registry[type] = Registry("method")
>>> @METHODS.register("simsiam")
... class SimSiam: ...
>>> METHODS.get("simsam")
UserError: unknown method 'simsam'; did you mean 'simsiam'? (known: simsiam)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Generic, TypeVar

from ssql_det.core.errors import UserError, did_you_mean

T = TypeVar("T")


def import_modules(package: str, path: Iterable[str]) -> Iterator[ModuleType]:
    """Each module of a folder, so that it registers what it has: ``all(import_modules(__name__, __path__))``.

    One whose name begins with an underscore is left out.
    """
    for found in pkgutil.iter_modules(path):
        if not found.name.startswith("_"):
            yield importlib.import_module(f"{package}.{found.name}")


class Registry(Generic[T]):
    """A table of parts of one kind. ``kind`` is how messages call them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters what it decorates. A name is given once: a second one would replace silently."""

        def enter(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"there is a {self.kind} {name!r} already: {self._parts[name]!r}")
            self._parts[name] = part
            return part

        return enter

    def get(self, name: str) -> T:
        if name not in self._parts:
            known = ", ".join(self)
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self)} (known: {known})")
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def latest_first(self) -> Iterator[T]:
        """The parts, where one of them is asked before another."""
        return iter([*self._parts.values()][::-1])
