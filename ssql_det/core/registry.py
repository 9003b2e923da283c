"""Registries, which find classes and functions by name, and plugins, the user's modules that add to them.

>>> METHODS = Registry("method")
>>> @METHODS.register("simsiam")
... class SimSiam: ...
>>> METHODS.get("simsam")
Traceback (most recent call last):
ssql_det.core.errors.UserError: unknown method 'simsam'; did you mean 'simsiam'? (known: simsiam)

A plugin registers as the package's own modules do: methods, quantizers, families of networks, networks, formats,
commands. Plugins are imported before the first lookup, in every process.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Generic, TypeVar

from ssql_det.core.errors import UserError, did_you_mean

T = TypeVar("T")

_PLUGINS_VARIABLE = "SSQL_DET_PLUGINS"  # passes the names on to child processes


def import_modules(package: str, path: Iterable[str]) -> Iterator[ModuleType]:
    """Import the modules of a package one by one, so that they register: ``all(import_modules(__name__, __path__))``.

    A module whose name begins with an underscore is skipped.
    """
    for module in pkgutil.iter_modules(path):
        if not module.name.startswith("_"):
            yield importlib.import_module(f"{package}.{module.name}")


class Registry(Generic[T]):
    """Objects of one kind by name; ``kind`` is what error messages call one of them, such as "method"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._objects: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers what it decorates. Registering a name twice is an error."""

        def add(registered: T) -> T:
            if name in self._objects:
                raise ValueError(f"{self.kind} {name!r} is already registered: {self._objects[name]!r}")
            self._objects[name] = registered
            return registered

        return add

    def get(self, name: str) -> T:
        if name not in self._objects:
            known = ", ".join(self)
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self)} (known: {known})")
        return self._objects[name]

    def __contains__(self, name: object) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._objects))

    def latest_first(self) -> Iterator[T]:
        """The objects, the last registered first: a plugin's come before the package's own."""
        return iter([*self._objects.values()][::-1])


def import_plugins(names: Iterable[str]) -> None:
    """Import the plugins of these module names. An exception in a plugin is not caught.

    >>> import_plugins(["my_lab.methods"])
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: there is no module my_lab.methods for --plugin: run where it is, or set PYTHONPATH
    """
    known = [name for name in os.environ.get(_PLUGINS_VARIABLE, "").split(",") if name]
    for name in names:
        if os.getcwd() not in sys.path:  # it is not on the path of a console script
            sys.path.append(os.getcwd())
        if not name or name.startswith("."):  # a relative import, which has no meaning here
            raise UserError(f"{name!r} is no name of a plugin; name its module in full, such as my_lab.methods")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
                raise  # a module that the plugin imports
            raise UserError(f"there is no module {name} for --plugin: run where it is, or set PYTHONPATH") from None
        known += [] if name in known else [name]
    os.environ[_PLUGINS_VARIABLE] = ",".join(known)


def import_config_plugins(key: str, file: str | os.PathLike[str] | None, overrides: Sequence[str]) -> None:
    """Import the plugins that ``key`` of a config names; called before the config is loaded, as they may add keys."""
    from ssql_det.core.config import read_config_file  # lazily, since every command imports this module
    from ssql_det.core.config_values import Bounds, fit_value

    given = [(read_config_file(file).get(key, []), file)] if file else []
    pairs = zip(overrides[::2], overrides[1::2], strict=False)
    given += [(value, "the command line") for name, value in pairs if name == key]
    for names, where in given[-1:]:
        import_plugins(fit_value(key, names, [], Bounds(like=["my_lab"]), f" in {where}"))


def import_inherited_plugins() -> None:
    """In a child process: import the plugins of the process that started it."""
    import_plugins(name for name in os.environ.get(_PLUGINS_VARIABLE, "").split(",") if name)
