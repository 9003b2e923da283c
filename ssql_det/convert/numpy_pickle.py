"""A pickle of arrays that every NumPy reads: since NumPy 2 its own pickles name modules that older ones lack."""

from __future__ import annotations

import pickle
from typing import IO, Any

import torch
from torch import Tensor

_PROTOCOL = 3  # the last that writes a function's name as a line of text
_OLD_NAMES = {"numpy._core.multiarray": "numpy.core.multiarray"}


class _Pickler(pickle._Pickler):
    """Python's pickler, the one written in Python, with NumPy's functions by the names that all versions know."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = _OLD_NAMES.get(getattr(obj, "__module__", None) or "")
        if module is None:
            super().save_global(obj, name)  # type: ignore[misc]
        else:
            self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]


def dump(content: Any, file: IO[bytes]) -> None:
    _Pickler(file, _PROTOCOL).dump(content)


def as_array(tensor: Tensor) -> Any:
    """NumPy has no bfloat16; float32 holds every value of it."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
