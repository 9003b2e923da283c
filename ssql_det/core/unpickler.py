"""A restricted unpickler, the only way the package reads ``.pth`` and ``.pkl`` files. No code in a file is executed.

A pickle is a program. Here it can only make tensors, arrays and plain containers:

- the names in the lists below are imported, or replaced by checked functions (:mod:`ssql_det.core.tensor_rebuild`);
- any other class (``argparse.Namespace``, a config class, a whole pickled module) is replaced by
  :class:`InertObject`, which stores its state and does nothing;
- state is set on inert objects, arrays and state dicts only: on a function or a class it would change the running
  program;
- if the file calls any other function, or a class of a module that can start programs, reading ends with an error.

The first three rules make it safe: nothing outside the lists is ever imported. The last makes an attack visible.
``torch.load`` is not used: some files make it run TorchScript, unpack a tar archive or write a ``.patch`` file.
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

_ZIP_MAGIC = b"PK\x03\x04"  # torch.save since torch 1.6 writes a zip archive
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch.save before that

_IMPORTED_NAMES = {
    "builtins": "bool complex dict float frozenset int list object set slice str tuple",
    "collections": "Counter OrderedDict defaultdict deque",
    "_codecs": "encode",  # protocol 2 pickles bytes as a call of it
    "datetime": "date datetime timedelta timezone",
    "torch": "Size device bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128",
}
_IMPORTED = {(module, name) for module, names in _IMPORTED_NAMES.items() for name in names.split()}
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


class _RefusedError(Exception):
    """The file contains something that a checkpoint never needs and an attack might."""


class _Unpickler(pickle._Unpickler):
    """Python's unpickler (the one written in Python), with restricted imports and changes of state."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], load_storage: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        module = _RENAMED_MODULES.get(module, module)
        if (module, name) in _REPLACED:
            return _REPLACED[module, name]
        if (module, name) in _IMPORTED:
            return getattr(importlib.import_module(module), name)
        if module in ("torch", "torch.cuda") and name in tensor_rebuild.STORAGE_DTYPES:
            return tensor_rebuild.STORAGE_DTYPES[name]
        if _looks_like_a_class(name) and module.split(".")[0] not in _CAN_START_PROGRAMS:
            return _inert_class(f"{module}.{name}")
        return _refuse_when_called(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """A storage, which ``torch.save`` keeps outside the pickle; in old files also a module with its source code."""
        kind, *details = pid
        if kind == "storage" and self._load_storage is not None:
            return self._load_storage(*details)
        if kind == "module":
            return details[0]
        raise pickle.UnpicklingError(f"it refers to a {kind!r} that the file does not have")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, InertObject):
            target.state = state
        elif isinstance(target, np.dtype):
            tensor_rebuild.set_dtype_state(target, state)
        elif isinstance(target, np.ndarray):
            tensor_rebuild.set_array_state(target, state)
        elif type(target) is OrderedDict:  # a state dict's _metadata
            vars(target).update(state)
        else:
            raise _RefusedError(f"it changes a {type(target).__name__}, which a checkpoint never does")

    dispatch[pickle.BUILD[0]] = load_build


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Read a ``.pth``, ``.pt``, ``.tar`` or ``.pkl`` file: tensors on the CPU, arrays, plain containers.

    Reads ``torch.save``'s zip format, its older format, and plain pickles, also those of Python 2.

    >>> torch.save({"model": {"weight": torch.ones(2)}}, "model.pth")
    >>> read_tensors("model.pth")
    {'model': {'weight': tensor([1., 1.])}}
    """
    file_path = Path(path)
    if file_path.is_dir():
        raise UserError(f"{path} is a directory; name the checkpoint file in it")
    if not file_path.is_file():  # a pipe would block forever
        raise UserError(f"there is no file {path}; check the path")
    try:
        with open(file_path, "rb") as file:
            return _read(file)
    except _RefusedError as refusal:
        raise UserError(f"{path} is refused: {refusal}; get the checkpoint from a source you trust") from None
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure
    except Exception as failure:  # a damaged pickle can raise any exception
        detail = textwrap.shorten(repr(failure), 200)
        raise UserError(f"{path} is not a readable checkpoint: {_guess_file_type(file_path)} ({detail})") from failure


def _read(file: IO[bytes]) -> Any:
    start = file.read(len(_LEGACY_MAGIC))
    file.seek(0)
    if start.startswith(_ZIP_MAGIC):
        return _read_archive(file)
    if start == _LEGACY_MAGIC:
        return _read_legacy(file)
    return _Unpickler(file).load()


def _read_archive(file: IO[bytes]) -> Any:
    """``torch.save``'s format: a zip archive of a pickle and a record for each storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("a zip archive that torch.save did not write")
        folder = folders[0]
        if f"{folder}constants.pkl" in names:
            raise _RefusedError("it is a TorchScript program; export its state_dict instead")
        if sum(record.file_size for record in archive.infolist()) > _length(file):  # torch.save does not compress
            raise _RefusedError("its records are larger than the file they are in")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")

        storages: dict[str, torch.Tensor] = {}

        def load_storage(dtype: torch.dtype, key: str, location: str, length: int) -> torch.Tensor:
            if key not in storages:
                tensor_rebuild.check_size(length * dtype.itemsize, archive.getinfo(f"{folder}data/{key}").file_size)
                storages[key] = torch.empty(length, dtype=dtype)
                with archive.open(f"{folder}data/{key}") as record:
                    tensor_rebuild.fill_storage(storages[key], record.read(storages[key].nbytes))
            return tensor_rebuild.check_same_storage(storages[key], dtype, length)

        return _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), load_storage).load()


def _read_legacy(file: IO[bytes]) -> Any:
    """``torch.save``'s older format: three pickles of metadata, the object, the storages' keys, and their bytes."""
    for _ in ("magic number", "version", "machine"):
        _Unpickler(file).load()
    storages: dict[str, torch.Tensor] = {}
    claimed, file_length = 0, _length(file)

    def load_storage(dtype: torch.dtype, key: str, location: str, length: int, view: None) -> torch.Tensor:
        if view is not None:
            raise ValueError("it holds a view of a storage, which only torch before 0.4 wrote")
        nonlocal claimed
        if key not in storages:
            claimed += length * dtype.itemsize
            tensor_rebuild.check_size(claimed, file_length)
            storages[key] = torch.empty(length, dtype=dtype)
        return tensor_rebuild.check_same_storage(storages[key], dtype, length)

    content = _Unpickler(file, load_storage).load()
    for key in _Unpickler(file).load():
        if int.from_bytes(file.read(8), "little") != len(storages[key]):
            raise ValueError(f"storage {key} has another size than its tensors say")
        tensor_rebuild.fill_storage(storages[key], file.read(storages[key].nbytes))
    return content


def _length(file: IO[bytes]) -> int:
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(position)
    return length


def _reconstruct(cls: type[InertObject], base: Any, value: Any) -> InertObject:
    """Make an object as pickle protocols 0 and 1 do: ``value`` is the content of its built-in base class."""
    instance = cls.__new__(cls)
    if isinstance(value, dict):
        instance.entries.update(value)
    elif isinstance(value, list):
        instance.elements.extend(value)
    elif value is not None:
        instance.args = (value,)
    return instance


def _get_enum_member(*args: Any) -> InertObject:
    """Some versions of Python pickle an enumeration's member as ``getattr(CLASS, NAME)``; the class is inert here."""
    if len(args) == 2 and isinstance(args[0], type) and issubclass(args[0], InertObject):
        return args[0](args[1])
    raise _RefusedError("it calls 'builtins.getattr', which a checkpoint never does")


_REPLACED: dict[tuple[str, str], Callable[..., Any]] = tensor_rebuild.REPLACEMENTS | {
    ("builtins", "long"): int,  # the names of Python 2
    ("builtins", "unicode"): str,
    ("builtins", "xrange"): tensor_rebuild.rebuild_range,
    ("builtins", "getattr"): _get_enum_member,
    ("copyreg", "_reconstructor"): _reconstruct,
    # a tensor in a plain pickle is the bytes of a torch.save file
    ("torch.storage", "_load_from_bytes"): lambda content: _read(io.BytesIO(content)),
}


def _looks_like_a_class(name: str) -> bool:
    return name.split(".")[-1].lstrip("_")[:1].isupper()


@functools.cache
def _inert_class(name: str) -> type[InertObject]:
    return type("InertObject", (InertObject,), {"name": name})


def _refuse_when_called(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise _RefusedError(f"it calls {name!r}, which a checkpoint never does")

    return refuse


def _guess_file_type(path: Path) -> str:
    """What a file that cannot be read might be, guessed from its first bytes."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull` to get the file itself"
    if start.lstrip()[:1] == b"<":
        return "it looks like a web page, perhaps a failed download"
    return "damaged or cut short, or another format"
