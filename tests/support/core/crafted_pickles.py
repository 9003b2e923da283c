"""Pickles and archives put together by hand, as no library would write them.

What :func:`value` to :func:`array` return is a piece of a pickle that leaves one
object on the stack; :func:`program` makes a whole one of it.
"""

import io
import pickle
import zipfile

from ssql_det.core.unpickler import read_tensors


def read_bytes(content, path):
    path.write_bytes(content)
    return read_tensors(path)


def archive(records):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in records.items():
            file.writestr(name, content)
    return buffer.getvalue()


def value(thing):
    return pickle.dumps(thing, 3)[2:-1]


def name(module, attribute):
    """What ``find_class`` finds; protocol 4, so that the attribute may have dots in it."""
    return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"


def called(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def given(target, state):
    return target + state + b"b"


def dtype(code):
    return called(name("numpy", "dtype"), value(code), b"\x89", b"\x88")


def array(shape, code, content):
    made = called(name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), value((0,)), value(b"b"))
    return given(made, b"(" + value(1) + value(shape) + code + value(False) + value(content) + b"t")


def program(body):
    return b"\x80\x04" + body + b"."


def legacy(content, storages=()):
    """What torch.save wrote before torch 1.6, up to the bytes of the storages."""
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + content + pickle.dumps(storages, 2)
