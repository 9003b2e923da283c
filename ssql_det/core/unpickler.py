"""The restricted reader: the one way a ``.pth`` or ``.pkl`` file gets in. Nothing in a file is ever executed.

A pickle is a program. Here it may build tensors, arrays and plain containers, nothing else:

- names on the short list below are resolved, or answered by functions of ours;
- any other class (``argparse.Namespace``, a config class, a whole pickled module) becomes an
  :class:`InertObject` object that keeps its state and does nothing;
- state is given to inert objects, arrays and a state_dict only: on a function or a class it would
  rewrite the running program;
- any other function, and any class of a module that can start programs, ends the reading with an
  error as soon as the file calls it.

Safety rests on the first three rules (what is not on the list is never imported); the last only makes
an attack loud. ``torch.load`` has no part in this: for a file of the right shape it would run TorchScript,
unpack a tar archive, or write a ``.patch`` file.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import pickle
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch

from ssql_det.core import tensor_rebuild
from ssql_det.core.errors import UserError

_ARCHIVE_HEAD = b"PK\x03\x04"  # of a zip archive: torch.save since torch 1.6
_LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch.save before that

_HARMLESS = {
    "builtins": "bool complex dict float frozenset int list object set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "_codecs": "encode",  # how protocol 2 spells bytes
    "datetime": "date datetime timedelta timezone",
    "torch": "Size device bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128",
}
_RESOLVED = {(module, name) for module, names in _HARMLESS.items() for name in names.split()}
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


class InertObject:
    """Stands where a foreign class stood. ``state`` is what the file wanted to put into it; nothing of it ran."""

    name = "?"
    args: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]  # of a dict subclass
    elements: list[Any]  # of a list subclass

    def __new__(cls, *args: Any, **kwargs: Any) -> InertObject:
        instance = super().__new__(cls)
        instance.args, instance.state, instance.entries, instance.elements = args, kwargs, {}, []
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes whatever the foreign class took; ``__new__`` has stored it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    def extend(self, values: Any) -> None:
        self.elements.extend(values)

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


class _RefusedError(Exception):
    """The file calls something it has no business calling."""


class _Unpickler(pickle._Unpickler):
    """Python's unpickler, the one written in Python: what a file may name and change is decided here."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], storage: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        module = _OLD_NAMES.get(module, module)
        if (module, name) in _OUR_OWN:
            return _OUR_OWN[module, name]
        if (module, name) in _RESOLVED:
            return getattr(importlib.import_module(module), name)
        if module in ("torch", "torch.cuda") and name in tensor_rebuild.ELEMENTS:
            return tensor_rebuild.ELEMENTS[name]
        if _looks_like_a_class(name) and module.split(".")[0] not in _CAN_START_PROGRAMS:
            return _inert_class(f"{module}.{name}")
        return _refuse_when_called(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """What ``torch.save`` keeps beside the pickle: storages, and long ago the source of a module."""
        kind, *what = pid
        if kind == "storage" and self._storage is not None:
            return self._storage(*what)
        if kind == "module":
            return what[0]
        raise pickle.UnpicklingError(f"it refers to a {kind!r} that is not in it")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, InertObject):
            target.state = state
        elif isinstance(target, np.dtype):
            tensor_rebuild.set_dtype(target, state)
        elif isinstance(target, np.ndarray):
            tensor_rebuild.set_array(target, state)
        elif type(target) is OrderedDict:  # a state_dict has _metadata
            vars(target).update(state)
        else:
            raise _RefusedError(f"it wants to change a {type(target).__name__}, which a checkpoint has no need of")

    dispatch[pickle.BUILD[0]] = load_build


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Read a ``.pth``, ``.pt``, ``.tar`` or ``.pkl`` file: tensors on the CPU, arrays, plain containers.

    Understands ``torch.save``'s zip format and the one before it, and plain pickles, Python 2's included.

    >>> read_tensors("r50.pkl")["model"]["stem.conv1.weight"].shape
    (64, 3, 7, 7)
    """
    file_path = Path(path)
    if file_path.is_dir():
        raise UserError(f"{path} is a directory; name the checkpoint file in it")
    if not file_path.is_file():  # nor a pipe, which would be waited for without end
        raise UserError(f"there is no file {path}; check the path")
    try:
        with open(file_path, "rb") as file:
            return _read(file)
    except _RefusedError as refusal:
        raise UserError(f"{path} is refused: {refusal}; get the checkpoint from a source you trust") from None
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure
    except Exception as failure:  # a pickle can fail in any way its opcodes can
        detail = textwrap.shorten(repr(failure), 200)
        raise UserError(f"{path} is not a readable checkpoint: {_what_it_is(file_path)} ({detail})") from failure


def _read(file: IO[bytes]) -> Any:
    head = file.read(len(_LEGACY_HEAD))
    file.seek(0)
    if head.startswith(_ARCHIVE_HEAD):
        return _read_archive(file)
    if head == _LEGACY_HEAD:
        return _read_legacy(file)
    return _Unpickler(file).load()


def _read_archive(file: IO[bytes]) -> Any:
    """``torch.save``'s format: a zip archive of one pickle and one record a storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("a zip archive, but not one that torch.save wrote")
        folder = folders[0]
        if f"{folder}constants.pkl" in names:
            raise _RefusedError("it is a TorchScript program; export its state_dict instead")
        if sum(record.file_size for record in archive.infolist()) > _length(file):  # torch.save compresses nothing
            raise _RefusedError("its records are larger than the file they are in")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it comes from a big-endian machine")

        storages: dict[str, torch.Tensor] = {}

        def storage(dtype: torch.dtype, key: str, location: str, count: int) -> torch.Tensor:
            if key not in storages:
                tensor_rebuild.check_claim(count * dtype.itemsize, archive.getinfo(f"{folder}data/{key}").file_size)
                storages[key] = torch.empty(count, dtype=dtype)
                with archive.open(f"{folder}data/{key}") as record:
                    tensor_rebuild.fill(storages[key], record.read(storages[key].nbytes))
            return tensor_rebuild.as_announced(storages[key], dtype, count)

        return _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), storage).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """``torch.save``'s format before: three pickles of preliminaries, the object, and then its storages' bytes."""
    for _ in ("magic number", "version", "machine"):
        _Unpickler(file).load()
    storages: dict[str, torch.Tensor] = {}
    claimed, length = 0, _length(file)

    def storage(dtype: torch.dtype, key: str, location: str, count: int, view: None) -> torch.Tensor:
        if view is not None:
            raise ValueError("it holds a view of a storage, as only torch before 0.4 wrote it")
        nonlocal claimed
        if key not in storages:
            claimed += count * dtype.itemsize
            tensor_rebuild.check_claim(claimed, length)
            storages[key] = torch.empty(count, dtype=dtype)
        return tensor_rebuild.as_announced(storages[key], dtype, count)

    content = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        if int.from_bytes(file.read(8), "little") != len(storages[key]):
            raise ValueError(f"storage {key} is not of the size announced")
        tensor_rebuild.fill(storages[key], file.read(storages[key].nbytes))
    return content


def _length(file: IO[bytes]) -> int:
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(position)
    return length


def _foreign(kind: type[InertObject], base: Any, value: Any) -> InertObject:
    """How pickle protocols 0 and 1 make an object of a foreign class: with what its built-in base class holds."""
    instance = kind.__new__(kind)
    if isinstance(value, dict):
        instance.entries.update(value)
    elif isinstance(value, list):
        instance.elements.extend(value)
    elif value is not None:
        instance.args = (value,)
    return instance


def _member(*args: Any) -> InertObject:
    """How some versions of Python pickle a member of an enumeration: an attribute of a class, which is foreign here."""
    if len(args) == 2 and isinstance(args[0], type) and issubclass(args[0], InertObject):
        return args[0](args[1])
    raise _RefusedError("it wants to call 'builtins.getattr', which a checkpoint has no need of")


_OUR_OWN: dict[tuple[str, str], Callable[..., Any]] = tensor_rebuild.CALLS | {
    ("builtins", "long"): int,  # protocol 2 writes Python 2's names
    ("builtins", "unicode"): str,
    ("builtins", "xrange"): tensor_rebuild.short_range,
    ("builtins", "getattr"): _member,
    ("copyreg", "_reconstructor"): _foreign,
    # A tensor in a plain pickle is a torch.save file in bytes.
    ("torch.storage", "_load_from_bytes"): lambda content: _read(io.BytesIO(content)),
}


def _looks_like_a_class(name: str) -> bool:
    return name.split(".")[-1].lstrip("_")[:1].isupper()


@functools.cache
def _inert_class(name: str) -> type[InertObject]:
    return type("InertObject", (InertObject,), {"name": name})


def _refuse_when_called(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise _RefusedError(f"it wants to call {name!r}, which a checkpoint has no need of")

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
