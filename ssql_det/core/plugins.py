"""A user's own modules: imported before anything is looked up by its name, in every process of a job.

A module registers what it has as the suite's own files do: methods, quantizers, families, networks, formats, commands.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

from ssql_det.core.errors import UserError

_VARIABLE = "SSQL_DET_PLUGINS"  # tells further processes


def import_plugins(names: Iterable[str]) -> None:
    """Import each once. A module that fails on import fails with its own traceback.

    >>> import_plugins(["my_lab.methods"])
    """
    known = [name for name in os.environ.get(_VARIABLE, "").split(",") if name]
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
    os.environ[_VARIABLE] = ",".join(known)


def import_plugins_again() -> None:
    """In a further process: those of the one that started it."""
    import_plugins(name for name in os.environ.get(_VARIABLE, "").split(",") if name)
