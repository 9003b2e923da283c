"""Opening a file of weights, whatever it is: pickles through the restricted reader, safetensors through its library."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ssql_det.core.errors import UserError, printable
from ssql_det.core.reader import read_tensors

METADATA = "__metadata__"  # safetensors' own name for the strings beside its tensors


def open_weights(path: str | os.PathLike[str]) -> Any:
    """The content of a ``.pth``, ``.pkl``, ``.tar``, ``.bin`` or ``.safetensors`` file, known by its first bytes.

    Of a safetensors file: ``{"model": tensors, "__metadata__": strings}``.
    """
    try:
        is_safetensors = Path(path).is_file() and _is_safetensors(Path(path))
    except OSError as failure:
        raise UserError(f"cannot read {path}: {failure.strerror or failure}") from failure
    if is_safetensors:
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                return {"model": {name: file.get_tensor(name) for name in file.keys()}, METADATA: file.metadata() or {}}  # noqa: SIM118
        except (SafetensorError, OSError) as failure:
            raise UserError(
                f"{path} is not a readable safetensors file: {printable(str(failure), 200)}; get it anew"
            ) from failure
    return read_tensors(path)


def _is_safetensors(path: Path) -> bool:
    """Its header's length, then its header, a JSON object."""
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size
