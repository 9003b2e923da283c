"""Checked replacements for the functions that a pickle calls to make arrays and tensors.

A pickle makes an array by calling functions of NumPy and torch with arguments from the file. Those functions do not
check them: a forged dtype turns bytes into pointers, a wrong length reads beyond a buffer.
:mod:`ssql_det.core.unpickler` calls these functions instead. Hooks and attributes of tensors are not restored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

_MAX_RANGE_LENGTH = 1_000_000

STORAGE_DTYPES = {  # torch pickles a dtype as the name of a storage class
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


def check_size(claimed: int, available: int) -> None:
    """Sizes in bytes. Called before memory is allocated: a short pickle can claim any number of elements."""
    if claimed > available:
        raise EOFError(f"its tensors claim {claimed} bytes, but the file has {available}")


def check_same_storage(storage: torch.Tensor, dtype: torch.dtype, length: int) -> torch.Tensor:
    """The storage, if a further reference to it gives the same dtype and length."""
    if (storage.dtype, len(storage)) != (dtype, length):
        raise ValueError("two references to a storage disagree about its type or size")
    return storage


def fill_storage(storage: torch.Tensor, content: bytes) -> None:
    """Copy the bytes of the file into a storage."""
    if len(content) != storage.nbytes:
        raise EOFError("it ends in the middle of a tensor")
    storage.view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)


def rebuild_tensor(
    storage: torch.Tensor, offset: int, size: Any, stride: Any, requires_grad: bool = False, *_: Any
) -> torch.Tensor:
    """A tensor that views a storage, which is itself a tensor of one dimension; ``offset`` is in elements."""
    storage.as_strided(size, stride, offset)  # raises if the view exceeds the storage; set_ would enlarge it
    view = torch.empty(0, dtype=storage.dtype).set_(storage.untyped_storage(), offset, size, stride)
    return view.requires_grad_(requires_grad)


def rebuild_parameter(data: torch.Tensor, requires_grad: bool = True, *_: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


def rebuild_dtype(name: str, *_: Any) -> np.dtype[Any]:
    """A dtype without fields; a copy, because ``set_dtype_state`` changes it."""
    dtype = np.dtype(name, copy=True)
    if dtype.kind not in "biufcSUO":
        raise ValueError(f"arrays of {dtype} are not supported")
    return dtype


def set_dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    """Set the byte order and ignore the rest of the state, such as fields and flags."""
    dtype.__setstate__(dtype.newbyteorder(state[1]).__reduce__()[2])  # type: ignore[attr-defined]


def set_array_state(array: Array, state: Any) -> None:
    """Fill an empty array. One with elements is refused: other objects may already use them."""
    shape, _dtype, _is_fortran, content = state[-4:]
    if array.size:
        raise ValueError("an array is given a second state")
    if isinstance(content, list) and len(content) != math.prod(shape):  # NumPy does not check this
        raise ValueError(f"an array of shape {shape} is given {len(content)} elements")
    array.__setstate__(state)


def rebuild_array(buffer: Any, dtype: np.dtype[Any], shape: Any, order: Any, axes: Any = None) -> Array:
    """An array as pickle protocol 5 makes it. ``frombuffer`` refuses arrays of objects, whose bytes are pointers."""
    flat = np.frombuffer(buffer, dtype)
    return flat.reshape(shape, order=order) if axes is None else flat.reshape(shape).transpose(axes)


def rebuild_scalar(dtype: np.dtype[Any], content: bytes | str) -> Any:
    """A NumPy scalar; Python 2 pickles its bytes as a string."""
    return rebuild_array(content.encode("latin1") if isinstance(content, str) else content, dtype, (), "C")[()]


def refuse_length(make_bytes: Callable[..., Any]) -> Callable[..., Any]:
    """``bytes`` or ``bytearray`` without the form ``bytes(LENGTH)``, by which a short pickle could fill the memory."""

    def make(*args: Any) -> Any:
        if args and isinstance(args[0], int):
            raise ValueError(f"it makes {args[0]} bytes without content")
        return make_bytes(*args)

    return make


def rebuild_range(*args: int) -> range:
    """A range of limited length, since a short pickle could make a list or a set of it."""
    made = range(*args)
    if len(made) > _MAX_RANGE_LENGTH:
        raise ValueError(f"{made!r} is too long for a checkpoint")
    return made


REPLACEMENTS: dict[tuple[str, str], Callable[..., Any]] = {  # by the module and name that a pickle has
    ("builtins", "bytearray"): refuse_length(bytearray),
    ("builtins", "bytes"): refuse_length(bytes),
    ("builtins", "range"): rebuild_range,
    ("numpy", "dtype"): rebuild_dtype,
    ("numpy._core.multiarray", "_reconstruct"): lambda cls, shape, dtype_code: np.empty(0, np.uint8),
    ("numpy._core.multiarray", "scalar"): rebuild_scalar,
    ("numpy._core.numeric", "_frombuffer"): rebuild_array,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, cls, args, state: rebuild(*args),
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
}
