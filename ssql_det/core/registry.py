"""Parts by name: each file of a kind registers its own, and a lookup that fails names the nearest.

>>> METHODS: Registry[type] = Registry("method")
>>> @METHODS.register("simsiam")
... class SimSiam: ...
>>> METHODS.get("simsam")
UserError: unknown method 'simsam'; did you mean 'simsiam'? (known: simsiam)

A user's own modules register as the suite's own files do: methods, quantizers, families, networks, formats, commands.
They are imported before anything is looked up by its name, in every process of a job.
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

_PLUGINS = "SSQL_DET_PLUGINS"  # tells further processes


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


def import_plugins(names: Iterable[str]) -> None:
    """Import each once. A module that fails on import fails with its own traceback.

    >>> import_plugins(["my_lab.methods"])
    """
    known = [name for name in os.environ.get(_PLUGINS, "").split(",") if name]
    for name in names:
        if os.getcwd() not in sys.path:  # a console script does not look there
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
                raise  # one that the plugin itself wants
            raise UserError(f"there is no module {name} for --plugin: run where it is, or set PYTHONPATH") from None
        known += [] if name in known else [name]
    os.environ[_PLUGINS] = ",".join(known)


def import_config_plugins(key: str, file: str | os.PathLike[str] | None, overrides: Sequence[str]) -> None:
    """Those that a config names, before it is read: they bring keys of their own.

    >>> import_config_plugins("PLUGINS", "mine.yaml", ["PLUGINS", "['my_lab']"])
    """
    import yaml

    from ssql_det.core.config import read_config_file  # not before it is needed: every command imports this module

    named = read_config_file(file).get(key, []) if file else []
    for pair in zip(overrides[::2], overrides[1::2], strict=False):
        named = yaml.safe_load(pair[1]) if pair[0] == key else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{key} is a list of modules' names, as ['my_lab']; got {named!r}")
    import_plugins(named)


def import_inherited_plugins() -> None:
    """In a further process: those of the one that started it."""
    import_plugins(name for name in os.environ.get(_PLUGINS, "").split(",") if name)
