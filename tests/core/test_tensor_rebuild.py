"""No array or tensor from a file can access memory outside its own."""

import pickle
import struct

import numpy as np
import pytest
from support.core.crafted_pickles import (
    make_legacy_file,
    make_pickle,
    make_zip,
    push,
    push_array,
    push_build,
    push_call,
    push_dtype,
    push_global,
    read_bytes,
)

from ssql_det.core.errors import UserError


def test_arrays_of_numpy_1_in_protocol_5_are_read(tmp_path):
    body = push_call(
        push_global("numpy.core.numeric", "_frombuffer"),
        push(b"ab"),
        push_dtype("u1"),
        push((2, 1)),
        push("C"),
    )
    assert read_bytes(make_pickle(body), tmp_path / "x").tolist() == [[97], [98]]


def test_a_file_cannot_change_numpys_own_dtypes(tmp_path):
    shared = push_call(push_global("numpy", "dtype"), push("f4"))
    read = read_bytes(make_pickle(push_build(shared, push((3, ">", None, None, None, -1, -1, 0)))), tmp_path / "x")
    assert read == np.dtype(">f4")
    assert np.dtype("f4").isnative


# a dtype of objects whose flags deny it
FORGED = push_build(push_dtype("O"), push((3, "|", None, None, None, -1, -1, 0)))
POINTER = b"\x00" * 8  # harmless even if it were used: NumPy reads NULL as None
from_buffer = push_global("numpy._core.numeric", "_frombuffer")
scalar = push_global("numpy._core.multiarray", "scalar")
FORGERIES = {
    "buffer of objects": push_call(from_buffer, push(POINTER), FORGED, push((1,)), push("C")),
    "array of objects": push_array((1,), FORGED, POINTER),
    "object scalar": push_call(scalar, FORGED, push(POINTER)),
    "structure with an object": push_call(scalar, push_dtype("f4,O"), push(b"\0" * 4 + POINTER)),
    "more objects than given": push_array((3,), push_dtype("O"), [1]),
    "fewer objects than given": push_array((1,), push_dtype("O"), [1, 2]),
    "second state": push_build(
        push_array((1,), push_dtype("f4"), b"1234"),
        b"(" + push((0,)) + push_dtype("f4") + push(False) + push(b"") + b"t",
    ),
}


@pytest.mark.parametrize("body", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_array_is_refused(body, tmp_path):
    with pytest.raises(UserError):
        read_bytes(make_pickle(body), tmp_path / "x")


def file_with_storage(form, length, offset, size, stride, view=None):
    """A file with a storage of four bytes, whose recorded length is ``length``, and a tensor that views it."""
    key = [push(part) for part in ("0", "cpu", length)] + ([push(view)] if form == "legacy" else [])
    storage = b"(" + push("storage") + push_global("torch", "ByteStorage") + b"".join(key) + b"tQ"
    content = make_pickle(
        push_call(
            push_global("torch._utils", "_rebuild_tensor"),
            storage,
            push(offset),
            push(size),
            push(stride),
        )
    )
    if form == "archive":
        return make_zip({"x/data.pkl": content, "x/data/0": b"1234"})
    return make_legacy_file(content, ["0"]) + struct.pack("<q", 4) + b"1234 and more bytes"


CLAIMS = {
    "offset": (4, 2, (3,), (1,)),
    "size": (4, 0, (5,), (1,)),
    "stride": (4, 0, (2,), (4,)),
    "negative stride": (4, 3, (2,), (-1,)),
    "negative offset": (4, -1, (1,), (1,)),
    "length": (9, 0, (9,), (1,)),
}


@pytest.mark.parametrize("form", ["archive", "legacy"])
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_tensor_cannot_exceed_its_storage(claim, form, tmp_path):
    assert read_bytes(file_with_storage(form, 4, 1, (3,), (1,)), tmp_path / "x").tolist() == list(b"234")
    with pytest.raises(UserError):
        read_bytes(file_with_storage(form, *claim), tmp_path / "x")


def test_a_view_of_a_storage_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"torch before 0\.4"):
        read_bytes(file_with_storage("legacy", 4, 0, (2,), (1,), view=("1", 2, 2)), tmp_path / "x")


def test_a_storage_without_content_is_refused(tmp_path):
    """It would show what was in the memory before."""
    whole = file_with_storage("legacy", 4, 0, (4,), (1,))
    without = whole.replace(pickle.dumps(["0"], 2), pickle.dumps([], 2))
    with pytest.raises(UserError, match="the content of a storage is missing"):
        read_bytes(without, tmp_path / "x")
