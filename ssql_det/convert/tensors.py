"""Single tensors of a file: as torch has them, alone in their storage, fit to be weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGEST = 1 << 30  # bytes of a weight, generously
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def as_tensor(value: Any) -> Tensor | None:
    """A tensor or an array of numbers as a tensor that shares its memory; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        value = torch.from_numpy(value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("=")))
    return value.detach() if isinstance(value, Tensor) else None


def is_spread(tensor: Tensor) -> bool:
    """Whether it claims more than it has and than a weight takes: one number can be spread over any shape."""
    return tensor.nbytes > max(tensor.untyped_storage().nbytes(), _LARGEST)


def alone(tensor: Tensor) -> Tensor:
    """The tensor in its dimensions' order: not a view that would take a whole storage along into a file."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def faults(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Tensors that no network can be run with: of integers, or with NaN or infinite values."""
    found = {}
    for name, tensor in tensors:
        if tensor.dtype not in _FLOATS:
            found[name] = f"holds {str(tensor.dtype).removeprefix('torch.')} values, not floats"
        elif not tensor.isfinite().all():
            found[name] = "has NaN or infinite values"
    return found
