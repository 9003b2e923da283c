"""Pickles and archives built opcode by opcode, as no library would write them.

Each ``push`` function returns opcodes that push one object on the unpickler's stack; :func:`make_pickle` makes a pickle
of them.
"""

import io
import pickle
import zipfile

from ssql_det.core.unpickler import read_tensors


def read_bytes(content, path):
    path.write_bytes(content)
    return read_tensors(path)


def make_zip(records):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in records.items():
            file.writestr(name, content)
    return buffer.getvalue()


def push(value):
    return pickle.dumps(value, 3)[2:-1]


def push_global(module, attribute):
    """What ``find_class`` returns; in protocol 4, whose attribute names may contain dots."""
    return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"


def push_call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def push_build(target, state):
    return target + state + b"b"


def push_dtype(code):
    return push_call(push_global("numpy", "dtype"), push(code), b"\x89", b"\x88")


def push_array(shape, code, content):
    made = push_call(
        push_global("numpy._core.multiarray", "_reconstruct"),
        push_global("numpy", "ndarray"),
        push((0,)),
        push(b"b"),
    )
    return push_build(made, b"(" + push(1) + push(shape) + code + push(False) + push(content) + b"t")


def make_pickle(body):
    return b"\x80\x04" + body + b"."


def make_legacy_file(content, storages=()):
    """A file as torch.save wrote it before torch 1.6, without the bytes of the storages."""
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + content + pickle.dumps(storages, 2)
