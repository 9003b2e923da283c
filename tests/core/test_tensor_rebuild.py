"""An array is never laid over memory that is not its own, whatever a file says of it."""

import struct

import numpy as np
import pytest
from support.core.crafted_pickles import archive, array, called, dtype, given, legacy, name, program, read_bytes, value

from ssql_det.core.errors import UserError


def test_arrays_of_numpy_1_in_protocol_5_are_read(tmp_path):
    body = called(name("numpy.core.numeric", "_frombuffer"), value(b"ab"), dtype("u1"), value((2, 1)), value("C"))
    assert read_bytes(program(body), tmp_path / "x").tolist() == [[97], [98]]


def test_a_file_cannot_turn_the_programs_own_dtypes(tmp_path):
    shared = called(name("numpy", "dtype"), value("f4"))
    read = read_bytes(program(given(shared, value((3, ">", None, None, None, -1, -1, 0)))), tmp_path / "x")
    assert read == np.dtype(">f4")
    assert np.dtype("f4").isnative


FORGED = given(dtype("O"), value((3, "|", None, None, None, -1, -1, 0)))  # an object's address, said not to be one
POINTER = b"\x00" * 8  # harmless even if it is believed: NumPy takes NULL for None
from_buffer = name("numpy._core.numeric", "_frombuffer")
scalar = name("numpy._core.multiarray", "scalar")
FORGERIES = {
    "buffer of objects": called(from_buffer, value(POINTER), FORGED, value((1,)), value("C")),
    "array of objects": array((1,), FORGED, POINTER),
    "object scalar": called(scalar, FORGED, value(POINTER)),
    "structure with an object": called(scalar, dtype("f4,O"), value(b"\0" * 4 + POINTER)),
    "more objects than given": array((3,), dtype("O"), [1]),
    "fewer objects than given": array((1,), dtype("O"), [1, 2]),
    "second state": given(
        array((1,), dtype("f4"), b"1234"), b"(" + value((0,)) + dtype("f4") + value(False) + value(b"") + b"t"
    ),
}


@pytest.mark.parametrize("body", FORGERIES.values(), ids=FORGERIES)
def test_an_array_cannot_be_laid_over_memory_that_is_not_its_own(body, tmp_path):
    with pytest.raises(UserError):
        read_bytes(program(body), tmp_path / "x")


def stored(form, count, offset, size, stride, view=None):
    """A file with a storage of four bytes, of which it says that it has ``count``, and a tensor over it."""
    key = [value(part) for part in ("0", "cpu", count)] + ([value(view)] if form == "legacy" else [])
    storage = b"(" + value("storage") + name("torch", "ByteStorage") + b"".join(key) + b"tQ"
    content = program(
        called(name("torch._utils", "_rebuild_tensor"), storage, value(offset), value(size), value(stride))
    )
    if form == "archive":
        return archive({"x/data.pkl": content, "x/data/0": b"1234"})
    return legacy(content, ["0"]) + struct.pack("<q", 4) + b"1234 and what comes after"


CLAIMS = {
    "offset": (4, 2, (3,), (1,)),
    "size": (4, 0, (5,), (1,)),
    "stride": (4, 0, (2,), (4,)),
    "negative stride": (4, 3, (2,), (-1,)),
    "negative offset": (4, -1, (1,), (1,)),
    "count": (9, 0, (9,), (1,)),
}


@pytest.mark.parametrize("form", ["archive", "legacy"])
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_tensor_cannot_reach_outside_its_storage(claim, form, tmp_path):
    assert read_bytes(stored(form, 4, 1, (3,), (1,)), tmp_path / "x").tolist() == list(b"234")
    with pytest.raises(UserError):
        read_bytes(stored(form, *claim), tmp_path / "x")


def test_a_view_of_a_storage_is_not_taken_for_the_whole(tmp_path):
    with pytest.raises(UserError, match=r"torch before 0\.4"):
        read_bytes(stored("legacy", 4, 0, (2,), (1,), view=("1", 2, 2)), tmp_path / "x")
