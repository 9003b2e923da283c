"""Checked replacements for the functions that a pickle calls to make arrays and tensors.

A pickle makes an array by calling functions of NumPy and torch with arguments from the file. Those functions do not
check them: a forged dtype turns bytes into pointers, a wrong length reads beyond a buffer. These functions are called
instead, each with the file's :class:`~ssql_det.core.reading_budget.Budget` before the arguments from the file. Hooks
and attributes of tensors are not restored.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

import numpy as np
import torch

from ssql_det.core.container_rebuild import MAX_DIMENSIONS, Maker, check_shape, check_type
from ssql_det.core.reading_budget import ELEMENT, Budget, UnsupportedError

Array = np.ndarray[Any, Any]

_TENSOR = 512  # the cost of a tensor besides its storage
_MAX_ELEMENTS = 1 << 48  # of a tensor, whose size can be far larger than its storage
_MAX_DTYPE_NAME = 16

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
    "UntypedStorage": torch.uint8,  # of the types that have no storage class, such as uint16 and float8_e4m3fn
}
_QUANTIZED = ("QInt8Storage", "QInt32Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage")
UNSUPPORTED = {  # by the module and name that a pickle has
    **{(module, name): "quantized tensors" for module in ("torch", "torch.storage") for name in _QUANTIZED},
    ("torch._utils", "_rebuild_qtensor"): "quantized tensors",
    ("torch._utils", "_rebuild_sparse_tensor"): "sparse tensors",
    ("torch._utils", "_rebuild_nested_tensor"): "nested tensors",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): "tensors without values, of the meta device",
}
_VIEWED_DTYPES = {  # by _rebuild_tensor_v3; older versions of torch do not have all of them
    getattr(torch, name, None)
    for name in (
        *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
} - {None}


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
    budget: Budget,
    storage: torch.Tensor,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> torch.Tensor:
    """A tensor that views a storage, which is itself a tensor of one dimension; ``offset`` is in elements."""
    budget.charge(_TENSOR)
    if metadata:  # without it the values would have the wrong sign
        raise UnsupportedError("lazily negated or conjugated tensors")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) > MAX_DIMENSIONS:
        raise ValueError("it has a tensor without a shape")
    storage.as_strided(size, stride, offset)  # raises if the view exceeds the storage; set_ would enlarge it
    if math.prod(size) > _MAX_ELEMENTS:
        raise ValueError(f"a tensor has more than {_MAX_ELEMENTS} elements")
    view = torch.empty(0, dtype=storage.dtype).set_(storage.untyped_storage(), offset, size, stride)
    return view.requires_grad_() if requires_grad else view


def rebuild_tensor_of_dtype(
    budget: Budget,
    storage: torch.Tensor,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> torch.Tensor:
    """As :func:`rebuild_tensor`, from a storage of bytes."""
    check_type(dtype, torch.dtype)
    if dtype not in _VIEWED_DTYPES:
        raise UnsupportedError(f"tensors of {dtype}")
    return rebuild_tensor(budget, storage.view(dtype), offset, size, stride, requires_grad, hooks, metadata)


def rebuild_parameter(budget: Budget, data: torch.Tensor, requires_grad: bool = True, *_: Any) -> torch.nn.Parameter:
    budget.charge(_TENSOR)
    return torch.nn.Parameter(data, requires_grad)


def rebuild_subclass(budget: Budget, rebuild: Maker, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a subclass or with attributes, as an ordinary tensor."""
    check_type(rebuild, FunctionType)  # all that a pickle can name take the budget
    check_type(arguments, tuple)
    return rebuild(budget, *arguments)


def rebuild_dtype(budget: Budget, name: str, *_: Any) -> np.dtype[Any]:
    """A dtype without fields; a copy, because ``set_dtype_state`` changes it."""
    check_type(name, str)
    if len(name) > _MAX_DTYPE_NAME:
        raise ValueError(f"it has a dtype of {len(name)} characters")
    dtype = np.dtype(name, copy=True)
    if dtype.kind not in "biufcSUO":
        raise ValueError(f"arrays of {dtype} are not supported")
    return dtype


def set_dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    """Set the byte order and ignore the rest of the state, such as fields and flags."""
    check_type(state, tuple)
    dtype.__setstate__(dtype.newbyteorder(state[1]).__reduce__()[2])  # type: ignore[attr-defined]


def make_empty_array(budget: Budget, kind: Any, shape: Any, code: Any) -> Array:
    """The array without elements that :func:`set_array_state` fills."""
    return np.empty(0, np.uint8)


def set_array_state(budget: Budget, array: Array, state: Any) -> None:
    """Fill an empty array. One with elements is refused: other objects may already use them."""
    check_type(state, tuple)
    shape, _dtype, _is_fortran, content = state[-4:]
    if array.size:
        raise ValueError("an array is given a second state")
    check_shape(shape)
    check_type(content, bytes, str, list)
    budget.charge(len(content))
    if isinstance(content, list):
        budget.charge(ELEMENT * len(content))
        budget.charge_unprotected()
        if len(content) != math.prod(shape):  # NumPy does not check this
            raise ValueError(f"an array of shape {shape} is given {len(content)} elements")
    array.__setstate__(state)


def rebuild_array(budget: Budget, buffer: Any, dtype: np.dtype[Any], shape: Any, order: Any, axes: Any = None) -> Array:
    """An array as pickle protocol 5 makes it. ``frombuffer`` refuses arrays of objects, whose bytes are pointers."""
    check_type(buffer, bytes, bytearray)
    if not isinstance(dtype, np.dtype):
        raise ValueError("it has an array without a dtype")
    check_shape(shape)
    flat = np.frombuffer(buffer, dtype)
    return flat.reshape(shape, order=order) if axes is None else flat.reshape(shape).transpose(axes)


def rebuild_scalar(budget: Budget, dtype: np.dtype[Any], content: bytes | str) -> Any:
    """A NumPy scalar; Python 2 pickles its bytes as a string."""
    check_type(content, bytes, str)
    budget.charge(len(content))
    content = content.encode("latin1") if isinstance(content, str) else content
    return rebuild_array(budget, content, dtype, (), "C")[()]


REPLACEMENTS: dict[tuple[str, str], Maker] = {  # by the module and name that a pickle has
    ("numpy", "dtype"): rebuild_dtype,
    ("numpy._core.multiarray", "_reconstruct"): make_empty_array,
    ("numpy._core.multiarray", "scalar"): rebuild_scalar,
    ("numpy._core.numeric", "_frombuffer"): rebuild_array,
    ("torch._tensor", "_rebuild_from_type_v2"): rebuild_subclass,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): rebuild_tensor_of_dtype,
}
