"""Checkpoint files whose bytes follow from their content alone, so that a file's hash can name what is in it.

Pickle writes a string once and refers to it from every other place that holds the same *object*. Which equal strings
are one object hangs on a program's history: in a run that was resumed those that were read differ from those of the
code, and the file would hold equal tensors in other bytes. Here equal strings are one.
"""

from __future__ import annotations

import pickle
import sys
from typing import IO, Any

import torch


class _Pickler(pickle._Pickler):
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
