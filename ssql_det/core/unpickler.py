"""The only way the package reads ``.pth`` and ``.pkl`` files. No code in a file is executed.

The pickles in a file are executed by :mod:`ssql_det.core.pickle_machine`, which makes tensors, arrays and plain
containers only. What that may cost is limited by :mod:`ssql_det.core.reading_budget`, one budget for a whole file.
``torch.load`` is not used: some files make it run TorchScript, unpack a tar archive or write a ``.patch`` file.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from ssql_det.core import tensor_rebuild
from ssql_det.core.container_rebuild import Maker, check_type
from ssql_det.core.errors import UserError, printable
from ssql_det.core.pickle_machine import RestrictedUnpickler, get_length
from ssql_det.core.reading_budget import Budget, RefusedError, UnsupportedError

_ZIP_MAGIC = b"PK\x03\x04"  # torch.save since torch 1.6 writes a zip archive
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # torch.save before that
_STORAGE = 512  # the cost of a storage besides its bytes
_MAX_DETAIL = 200  # characters


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
        with open(file_path, "rb") as file, _pausing_garbage_collection():
            budget = Budget(get_length(file))
            content = _read(budget, file)
            budget.check_content(content)
            return content
    except RefusedError as refusal:
        raise UserError(f"{path} is refused: {refusal}; get the checkpoint from a source you trust") from None
    except UnsupportedError as kind:
        raise UserError(f"{path} has {kind}, which are not supported; save it with ordinary tensors") from None
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure
    except Exception as failure:  # a damaged pickle can raise any exception
        detail = printable(repr(failure), _MAX_DETAIL)
        raise UserError(f"{path} is not a readable checkpoint: {_guess_file_type(file_path)} ({detail})") from failure


def _read(budget: Budget, file: IO[bytes]) -> Any:
    start = file.read(len(_LEGACY_MAGIC))
    file.seek(0)
    if start.startswith(_ZIP_MAGIC):
        return _read_archive(budget, file)
    if start == _LEGACY_MAGIC:
        return _read_legacy(budget, file)
    return _unpickle(budget, file)


def _read_nested(budget: Budget, content: bytes) -> Any:
    check_type(content, bytes, bytearray)
    budget.charge_nested_file(len(content))
    return _read(budget, io.BytesIO(content))


_FUNCTIONS: dict[tuple[str, str], Maker] = {
    ("torch.storage", "_load_from_bytes"): _read_nested  # a tensor in a plain pickle is the bytes of a torch.save file
}


def _unpickle(budget: Budget, file: IO[bytes], load_storage: Callable[..., torch.Tensor] | None = None) -> Any:
    return RestrictedUnpickler(file, budget, _FUNCTIONS, load_storage).load()


def _read_archive(budget: Budget, file: IO[bytes]) -> Any:
    """``torch.save``'s format: a zip archive of a pickle and a record for each storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("a zip archive that torch.save did not write")
        folder = folders[0]
        if f"{folder}constants.pkl" in names:
            raise RefusedError("it is a TorchScript program; export its state_dict instead")
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise RefusedError("its records are compressed, which torch.save does not do")
        if sum(record.file_size for record in archive.infolist()) > get_length(file):
            raise RefusedError("its records are larger than the file they are in")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")

        storages: dict[str, torch.Tensor] = {}

        def load_storage(dtype: torch.dtype, key: str, length: int) -> torch.Tensor:
            if key not in storages:
                record = archive.getinfo(f"{folder}data/{key}")
                storages[key] = _make_storage(budget, dtype, length, record.file_size)
                with archive.open(record) as content:
                    tensor_rebuild.fill_storage(storages[key], content.read(storages[key].nbytes))
            return tensor_rebuild.check_same_storage(storages[key], dtype, length)

        return _unpickle(budget, io.BytesIO(archive.read(f"{folder}data.pkl")), load_storage)


def _read_legacy(budget: Budget, file: IO[bytes]) -> Any:
    """``torch.save``'s older format: three pickles of metadata, the object, the storages' keys, and their bytes."""
    for _ in ("magic number", "version", "machine"):
        _unpickle(budget, file)
    storages: dict[str, torch.Tensor] = {}
    unclaimed = get_length(file)

    def load_storage(dtype: torch.dtype, key: str, length: int, view: Any) -> torch.Tensor:
        if view is not None:
            raise ValueError("it holds a view of a storage, which only torch before 0.4 wrote")
        nonlocal unclaimed
        if key not in storages:
            storages[key] = _make_storage(budget, dtype, length, unclaimed)
            unclaimed -= storages[key].nbytes
        return tensor_rebuild.check_same_storage(storages[key], dtype, length)

    content = _unpickle(budget, file, load_storage)
    keys = _unpickle(budget, file)
    check_type(keys, list)
    for key in keys:
        check_type(key, str)
    if {*keys} != storages.keys():  # what is not filled would show this process's memory
        raise ValueError("the content of a storage is missing")
    for key in keys:
        if int.from_bytes(file.read(8), "little") != len(storages[key]):
            raise ValueError(f"storage {key} has another size than its tensors say")
        tensor_rebuild.fill_storage(storages[key], file.read(storages[key].nbytes))
    return content


def _make_storage(budget: Budget, dtype: torch.dtype, length: int, available: int) -> torch.Tensor:
    """A storage without content. A short pickle can claim any length: ``available`` is what the file has, in bytes."""
    if length * dtype.itemsize > available:
        raise EOFError(f"a tensor claims {length * dtype.itemsize} bytes, but the file has {available}")
    budget.charge(_STORAGE + length * dtype.itemsize)
    return torch.empty(length, dtype=dtype)


@contextmanager
def _pausing_garbage_collection() -> Iterator[None]:
    """Python would search all that was read so far for cycles again and again, which takes longer than reading it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
