"""Writing tensors reproducibly: equal content gives equal bytes, so a file's hash identifies its content.

Safetensors files hold named tensors, and strings in a JSON header; their own library reads them, which runs no code.
Checkpoints are files of ``torch.save``; :mod:`ssql_det.core.unpickler` reads them.
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

METADATA = "__metadata__"  # the header's key for the strings, as the format defines it

_DTYPE_NAMES = {
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
_ALIGNMENT = 8  # bytes; the header is padded to a multiple


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins with a header's length and a JSON object, as safetensors files do."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            head = file.read(9)
        return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < Path(path).stat().st_size
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the strings of the header."""
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as failure:
        reason = printable(str(failure), 200)
        raise UserError(
            f"{path} is not a readable safetensors file: {reason}; download or convert it again"
        ) from failure


def write_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: IO[bytes]) -> None:
    """Write a safetensors file: the header's length, the padded header, and the tensors, largest element type first.

    Used instead of ``safetensors.torch.save``, which writes the metadata in random order (0.8.0): equal content would
    give different bytes. It also holds a copy of all tensors in memory.

    >>> with open("model.safetensors", "wb") as file:
    ...     write_safetensors({"weight": torch.ones(2)}, {"format": "pt"}, file)
    >>> read_safetensors("model.safetensors")
    ({'weight': tensor([1., 1.])}, {'format': 'pt'})
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {METADATA: metadata}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in names:
        file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Pickler(pickle._Pickler):
    """A pickler that writes every string once, however many equal string objects there are, and tensors contiguous.

    Python's writes a string again unless it is the same *object*. Whether equal strings are one object depends on how
    a program made them, so a resumed run would write the same content as other bytes. Likewise equal weights would be
    other bytes in channels last.
    """

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if type(obj) is str:
            obj = sys.intern(obj)
        elif isinstance(obj, Tensor) and obj.layout == torch.strided:
            obj = _as_contiguous(obj)
        super().save(obj, save_persistent_id)  # type: ignore[misc]


def _as_contiguous(tensor: Tensor) -> Tensor:
    """With the strides of a new tensor, also along axes of length 1, where any stride counts as contiguous."""
    strides = torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format).stride()
    return tensor if tensor.stride() == strides else tensor.contiguous().as_strided(tensor.shape, strides)


class _PickleModule:
    """The part of a pickle module that ``torch.save`` uses."""

    Pickler = _Pickler


def save_tensors(content: Any, file: IO[bytes]) -> None:
    """``torch.save`` for tensors and plain containers that writes equal content as equal bytes.

    >>> with open("model.pth", "wb") as file:
    ...     save_tensors({"weight": torch.ones(2)}, file)
    >>> torch.load("model.pth", weights_only=True)
    {'weight': tensor([1., 1.])}
    """
    torch.save(content, file, pickle_module=_PickleModule)
