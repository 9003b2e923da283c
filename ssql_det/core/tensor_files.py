"""Tensors in files whose bytes follow from their content alone, so that a file's hash can name what is in it.

Safetensors files have tensors by name, and strings about them in a header that any JSON reader shows. Nothing in one
can be executed, so its own library reads it; written they are here, since the library orders a header anew each time.
Torch's files are pickles: where checkpoints go in and out.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssql_det.core.errors import UserError, printable

METADATA = "__metadata__"  # safetensors' own name for the strings beside its tensors

_CODES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Known by its first bytes: its header's length, then its header, a JSON object."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            head = file.read(9)
        return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < Path(path).stat().st_size
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and the strings of its header."""
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as failure:
        reason = printable(str(failure), 200)
        raise UserError(f"{path} is not a readable safetensors file: {reason}; get it anew") from failure


def write_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: IO[bytes]) -> None:
    """A header's length, the header as JSON, padded, and the tensors' bytes, largest elements first.

    >>> with atomic_write("model.safetensors") as file:
    ...     write_safetensors(model.state_dict(), {"format": "pt"}, file)
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {METADATA: metadata}
    end = 0
    for name in ordered:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in ordered:
        file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Pickler(pickle._Pickler):
    """Pickle writes a string once and refers to it from every other place that holds the same *object*. Which equal
    strings are one object hangs on a program's history: a resumed run would write equal tensors in other bytes. Here
    equal strings are one.
    """

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        super().save(sys.intern(obj) if type(obj) is str else obj, save_persistent_id)  # type: ignore[misc]


class _PickleModule:
    """What ``torch.save`` takes of a pickle module."""

    Pickler = _Pickler


def save_tensors(content: Any, file: IO[bytes]) -> None:
    """``torch.save`` of tensors and plain containers, in the same bytes for the same content.

    >>> with atomic_write("model.pth") as file:
    ...     save_tensors({"model": model.state_dict()}, file)
    """
    torch.save(content, file, pickle_module=_PickleModule)
