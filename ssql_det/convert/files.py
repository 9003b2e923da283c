"""Opening a file of weights, whatever it is: pickles through the restricted reader, safetensors through its library."""

from __future__ import annotations

import os
from typing import Any

from ssql_det.core.reader import read_tensors
from ssql_det.core.safetensors_file import METADATA, is_safetensors, read_safetensors


def open_weights(path: str | os.PathLike[str]) -> Any:
    """The content of a ``.pth``, ``.pkl``, ``.tar``, ``.bin`` or ``.safetensors`` file, known by its first bytes.

    Of a safetensors file: ``{"model": tensors, "__metadata__": strings}``.
    """
    if is_safetensors(path):
        tensors, strings = read_safetensors(path)
        return {"model": tensors, METADATA: strings}
    return read_tensors(path)
