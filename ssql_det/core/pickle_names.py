"""What the names in a pickle stand for. Nothing outside the lists below is ever imported for a file.

A name in the lists is a class of Python or torch, or a checked function that takes its place. Any other class
(``argparse.Namespace``, a config class, a whole pickled module) is an inert one. A file that calls any other function,
or a class of a module that can start programs, is refused, which makes an attack visible.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ssql_det.core import container_rebuild, inert, tensor_rebuild
from ssql_det.core.container_rebuild import Maker
from ssql_det.core.reading_budget import Budget, RefusedError, UnsupportedError

_NAMES = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "datetime": "date datetime timedelta timezone",
    "torch": "Size device",
}
_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
KNOWN: dict[tuple[str, str], Any] = {
    **{
        (module, name): getattr(importlib.import_module(module), name)
        for module, names in _NAMES.items()
        for name in names.split()
    },
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{
        (module, name): dtype
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in tensor_rebuild.STORAGE_DTYPES.items()
    },
    ("builtins", "long"): int,  # the names of Python 2
    ("builtins", "unicode"): str,
    ("builtins", "xrange"): range,
    ("_codecs", "encode"): container_rebuild.encode,
    **inert.REPLACEMENTS,
    **tensor_rebuild.REPLACEMENTS,
}
_RENAMED_MODULES = {  # since Python 2 and NumPy 1
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}
_CAN_START_PROGRAMS = frozenset(
    [
        *("builtins", "code", "codeop", "functools", "importlib", "marshal", "operator", "pickle", "pkgutil", "types"),
        *("asyncio", "concurrent", "multiprocessing", "pty", "signal", "subprocess", "threading"),
        *("ctypes", "os", "nt", "platform", "posix", "shutil", "socket", "sys", "tempfile", "webbrowser"),
        *("pdb", "pip", "profile", "runpy", "timeit", "trace"),
    ]
)
_CLASS = 2048  # the cost of a class or a function that is made for a name
_MAX_LENGTH = 1000  # of a name with its module


def resolve(module: str, name: str) -> tuple[str, str]:
    """The module and name of today."""
    return _RENAMED_MODULES.get(module, module), name


def make_foreign(budget: Budget, module: str, name: str) -> Any:
    """What stands for a name that is not in the lists."""
    if len(module) + len(name) > _MAX_LENGTH:
        raise ValueError(f"it has a name of {len(module) + len(name)} characters")
    if (module, name) in tensor_rebuild.UNSUPPORTED:
        raise UnsupportedError(tensor_rebuild.UNSUPPORTED[module, name])
    budget.charge(_CLASS)
    if _looks_like_a_class(name) and module.split(".")[0] not in _CAN_START_PROGRAMS:
        return inert.make_inert_class(f"{module}.{name}")
    return _refuse_when_called(f"{module}.{name}")


def _looks_like_a_class(name: str) -> bool:
    return name.split(".")[-1].lstrip("_")[:1].isupper()


def _refuse_when_called(name: str) -> Maker:
    def refuse(budget: Budget, *args: Any, **kwargs: Any) -> Any:
        raise RefusedError(f"it calls {name!r}, which a checkpoint never does")

    return refuse
