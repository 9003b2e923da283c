"""The restricted reader: the one way a ``.pth`` or ``.pkl`` file gets in. Nothing in a file is ever executed.

A pickle is a program. Here it may build tensors, arrays and plain containers, nothing else:

- names on the short list below are resolved;
- any other class (``argparse.Namespace``, a config class, a whole pickled module) becomes an
  :class:`Inert` object that keeps its state and does nothing;
- any other function, and any class of a module that can start programs, ends the reading with an
  error as soon as the file calls it.

Safety rests on the first two rules (what is not on the list is never imported); the third only makes
an attack loud.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import pickle
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from ssql_det.core.errors import UserError

# How a torch.save file begins that is older than the zip format of torch 1.6.
_TORCH_LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

_PLAIN = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "_codecs": "encode",  # how protocol 2 spells bytes
    "datetime": "date datetime timedelta timezone",
}
_NUMPY = {
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
}
_TORCH = {
    "torch": "Size Tensor device "
    "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128",
    "torch._tensor": "_rebuild_from_type_v2",
    "torch._utils": "_rebuild_tensor _rebuild_tensor_v2 _rebuild_parameter _rebuild_parameter_with_state",
    "torch.nn.parameter": "Parameter",
}
_RESOLVED = {
    (module, name) for table in (_PLAIN, _NUMPY, _TORCH) for module, names in table.items() for name in names.split()
}
_OLD_NAMES = {  # Python 2, and NumPy 1
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


class Inert:
    """Stands where a foreign class stood. ``state`` is what the file wanted to put into it; nothing of it ran."""

    name = "?"
    args: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]  # of a dict subclass
    elements: list[Any]  # of a list or set subclass

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        instance = super().__new__(cls)
        instance.args, instance.state, instance.entries, instance.elements = args, kwargs, {}, []
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes whatever the foreign class took; ``__new__`` has stored it."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    add = append

    def extend(self, values: Any) -> None:
        self.elements.extend(values)

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


class _RefusedError(Exception):
    """The file calls something it has no business calling."""


class _Unpickler(pickle.Unpickler):
    """``pickle.Unpickler`` whose every name goes through the list above."""

    def find_class(self, module: str, name: str) -> Any:
        module = _OLD_NAMES.get(module, module)
        if (module, name) in _OUR_OWN:
            return _OUR_OWN[module, name]
        if (module, name) in _RESOLVED:
            return _resolve(module, name)
        if _looks_like_a_class(name) and module.split(".")[0] not in _CAN_START_PROGRAMS:
            return _inert_class(f"{module}.{name}")
        return _refuse_when_called(f"{module}.{name}")


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Read a ``.pth``, ``.pt``, ``.tar`` or ``.pkl`` file: tensors on the CPU, arrays, plain containers.

    Understands ``torch.save``'s zip format and the one before it, and plain pickles, Python 2's included.

    >>> read_tensors("r50.pkl")["model"]["stem.conv1.weight"].shape
    (64, 3, 7, 7)
    """
    file_path = Path(path)
    if file_path.is_dir():
        raise UserError(f"{path} is a directory; name the checkpoint file in it")
    if not file_path.exists():
        raise UserError(f"there is no file {path}; check the path")
    try:
        with open(file_path, "rb") as file:
            return _read(file)
    except _RefusedError as refusal:
        raise UserError(f"{path} is refused: {refusal}; get the checkpoint from a source you trust") from None
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure
    except Exception as failure:  # a pickle can fail in any way its opcodes can
        raise UserError(f"{path} is not a readable checkpoint ({_what_it_is(file_path)}): {failure}") from failure


def _read(file: IO[bytes]) -> Any:
    if zipfile.is_zipfile(file):
        if any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(file).namelist()):
            raise _RefusedError("it is a TorchScript program; export its state_dict instead")
        return _read_torch(file)
    file.seek(0)
    if file.read(len(_TORCH_LEGACY_HEAD)) == _TORCH_LEGACY_HEAD:
        return _read_torch(file)
    file.seek(0)
    return _load(file, encoding="latin1")


def _read_torch(file: IO[bytes]) -> Any:
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_PICKLE, encoding="latin1")


def _load(file: IO[bytes], **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


_PICKLE = types.ModuleType("restricted_pickle")  # what torch.load asks of a pickle module
vars(_PICKLE).update(Unpickler=_Unpickler, load=_load)

_OUR_OWN: dict[tuple[str, str], Callable[..., Any]] = {
    # A tensor in a plain pickle is a torch.save file in bytes; torch would read it without restriction.
    ("torch.storage", "_load_from_bytes"): lambda content: _read(io.BytesIO(content)),
    # How pickle protocols 0 and 1 make an object of a foreign class.
    ("copyreg", "_reconstructor"): lambda kind, base, state: kind.__new__(kind),
}


def _looks_like_a_class(name: str) -> bool:
    return name.split(".")[-1].lstrip("_")[:1].isupper()


@functools.cache
def _inert_class(name: str) -> type[Inert]:
    return type("Inert", (Inert,), {"name": name})


def _resolve(module: str, name: str) -> Any:
    if module.startswith("numpy._core") and not hasattr(importlib.import_module("numpy"), "_core"):
        module = module.replace("numpy._core", "numpy.core")  # NumPy 1 is installed
    return getattr(importlib.import_module(module), name)


def _refuse_when_called(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise _RefusedError(f"it wants to call {name}, which a checkpoint has no need of")

    return refuse


def _what_it_is(path: Path) -> str:
    """A guess at what a file that is no checkpoint is, from how it begins."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull` to get the file itself"
    if head.lstrip()[:1] == b"<":
        return "it looks like a web page, perhaps a failed download"
    return "damaged or cut short, or another format"
