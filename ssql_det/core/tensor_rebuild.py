"""Arrays and tensors from what a pickle says about them, none of it believed unchecked.

A pickle makes an array by calling functions of NumPy and torch by name and by handing over their state. Those
functions trust it: a forged dtype makes pointers of bytes, a wrong length reads past an end. Here stand the few
that :mod:`ssql_det.core.unpickler` calls instead. What is not an array's value is left out: hooks, attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

_LONGEST_RANGE = 1_000_000

ELEMENTS = {  # of the storages that torch names by their type
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


def check_claim(claimed: int, there: int) -> None:
    """Before memory is asked for: a few bytes can claim any number of elements."""
    if claimed > there:
        raise EOFError(f"its tensors claim {claimed} bytes where {there} are")


def as_announced(elements: torch.Tensor, dtype: torch.dtype, count: int) -> torch.Tensor:
    """A storage that is referred to again, if it is meant to be the same."""
    if (elements.dtype, len(elements)) != (dtype, count):
        raise ValueError("a storage is announced twice, each time as something else")
    return elements


def fill(elements: torch.Tensor, content: bytes) -> None:
    """The elements of a storage from their bytes, in place."""
    if len(content) != elements.nbytes:
        raise EOFError("it ends in the middle of a tensor")
    elements.view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)


def tensor(storage: torch.Tensor, offset: int, size: Any, stride: Any, requires_grad: bool = False, *_: Any) -> Any:
    """A tensor over a storage, or over a part of it. A storage is a tensor of one dimension."""
    storage.as_strided(size, stride, offset)  # an error if it reaches outside; set_ would make the storage longer
    made = torch.empty(0, dtype=storage.dtype).set_(storage.untyped_storage(), offset, size, stride)
    return made.requires_grad_(requires_grad)


def parameter(data: torch.Tensor, requires_grad: bool = True, *_: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


def dtype(name: str, *_: Any) -> np.dtype[Any]:
    """A plain element type; a copy, because it is about to be given a state."""
    made = np.dtype(name, copy=True)
    if made.kind not in "biufcSUO":
        raise ValueError(f"arrays of {made} are not understood")
    return made


def set_dtype(target: np.dtype[Any], state: Any) -> None:
    """Of all that a state could say about a dtype, its byte order is taken."""
    target.__setstate__(target.newbyteorder(state[1]).__reduce__()[2])  # type: ignore[attr-defined]


def set_array(target: Array, state: Any) -> None:
    """Fill an array that is still empty: one with elements may have been handed out already."""
    shape, _dtype, _is_fortran, content = state[-4:]
    if target.size:
        raise ValueError("an array is given a second state")
    if isinstance(content, list) and len(content) != math.prod(shape):  # NumPy does not count them
        raise ValueError(f"an array of shape {shape} is given {len(content)} elements")
    target.__setstate__(state)


def array(buffer: Any, dtype: np.dtype[Any], shape: Any, order: Any, axes: Any = None) -> Array:
    """How pickle protocol 5 makes an array. ``frombuffer`` makes none of objects: bytes cannot say where they are."""
    flat = np.frombuffer(buffer, dtype)
    return flat.reshape(shape, order=order) if axes is None else flat.reshape(shape).transpose(axes)


def scalar(dtype: np.dtype[Any], content: bytes | str) -> Any:
    """A NumPy scalar; its bytes are a string where Python 2 wrote them."""
    return array(content.encode("latin1") if isinstance(content, str) else content, dtype, (), "C")[()]


def of_content(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Bytes of what is there, not of so many zeros: that is how a short pickle takes all memory."""

    def make(*args: Any) -> Any:
        if args and isinstance(args[0], int):
            raise ValueError(f"{args[0]} bytes are made of nothing")
        return kind(*args)

    return make


def short_range(*args: int) -> range:
    """Whatever is made of a range, a list or a set, has its length."""
    made = range(*args)
    if len(made) > _LONGEST_RANGE:
        raise ValueError(f"{made!r} is longer than any a checkpoint has")
    return made


CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "bytearray"): of_content(bytearray),
    ("builtins", "bytes"): of_content(bytes),
    ("builtins", "range"): short_range,
    ("numpy", "dtype"): dtype,
    ("numpy._core.multiarray", "_reconstruct"): lambda kind, shape, code: np.empty(0, np.uint8),
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy._core.numeric", "_frombuffer"): array,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda build, kind, args, state: build(*args),
    ("torch._utils", "_rebuild_parameter"): parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): parameter,
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
}
