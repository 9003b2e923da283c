"""Hostile files. Each attack works on ``pickle.load``, or worked on ``torch.load`` when it was written."""

import contextlib
import io
import os
import pickle
import stat
import struct
import tarfile

import pytest
import torch
from support.core.crafted_pickles import (
    make_legacy_file,
    make_pickle,
    make_zip,
    push,
    push_build,
    push_call,
    push_global,
    read_bytes,
)
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.inert import InertObject

FORMATS = {
    "pickle": lambda content: content,
    "archive": lambda content: make_zip({"x/data.pkl": content}),
    "legacy": make_legacy_file,
    "in bytes": lambda content: make_pickle(push_call(push_global("torch.storage", "_load_from_bytes"), push(content))),
    "in bytes, legacy": lambda content: FORMATS["in bytes"](make_legacy_file(content)),
}
all_formats = pytest.mark.parametrize("wrap", FORMATS.values(), ids=FORMATS)

CODE = "open('MARKER', 'w')"
ATTACKS = [
    ("os", "system", "touch MARKER"),
    ("posix", "system", "touch MARKER"),
    ("subprocess", "check_call", ["touch", "MARKER"]),
    ("builtins", "eval", CODE),
    ("builtins", "exec", CODE),
    ("builtins", "open", "MARKER", "w"),
    ("io", "open", "MARKER", "w"),
    ("os", "mkdir", "MARKER"),
    ("numpy", "savetxt", "MARKER", [1]),
    ("numpy.testing._private.utils", "runstring", CODE, {}),
    ("torch", "save", {}, "MARKER"),
    ("torch", "serialization.os.system", "touch MARKER"),
    ("torch.serialization", "os.system", "touch MARKER"),
]
REFUSED = {
    "builtins": ["__import__", "compile", "getattr", "setattr", "str.format", "type"],
    "importlib": ["import_module"],
    "os": ["execv"],
    "subprocess": ["Popen"],
    "pty": ["spawn"],
    "ctypes": ["CDLL"],
    "code": ["InteractiveInterpreter"],
    "types": ["CodeType", "FunctionType"],
    "functools": ["partial"],
    "operator": ["attrgetter", "methodcaller"],
    "pickle": ["loads", "Unpickler"],
    "copyreg": ["__newobj__", "add_extension"],
    "collections": ["namedtuple"],
    "_codecs": ["lookup"],
    "torch": ["load", "from_file", "hub.load", "jit.load", "ops.load_library", "serialization.load"],
    "torch.hub": ["load"],
    "torch.jit": ["load"],
    "torch._utils": ["_set_obj_state", "_rebuild_wrapper_subclass"],
    "torch._C": ["_set_tensor_metadata"],
    "torch.utils.collect_env": ["run"],
    "numpy": ["load", "fromfile", "memmap", "ndarray", "vectorize"],
    "numpy.lib.format": ["read_array"],
    "numpy.ctypeslib": ["load_library"],
    "ssql_det.core.unpickler": ["read_tensors"],
}


def attack(module, attribute, *arguments):
    return make_pickle(push_call(push_global(module, attribute), *(push(part) for part in arguments)))


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that an attack creates if it succeeds."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "MARKER"


@pytest.mark.parametrize("parts", ATTACKS, ids=lambda parts: ".".join(parts[:2]))
@pytest.mark.slow
def test_the_attacks_work_on_pickle(parts, marker):
    pickle.loads(attack(*parts))
    assert marker.exists()


@all_formats
@pytest.mark.parametrize("parts", ATTACKS, ids=lambda parts: ".".join(parts[:2]))
def test_an_attack_is_refused_before_it_runs(parts, wrap, marker):
    with pytest.raises(UserError, match=f"x is refused: it calls '{parts[0]}.{parts[1]}'"):
        read_bytes(wrap(attack(*parts)), marker.parent / "x")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "attribute"), [(module, attribute) for module, names in REFUSED.items() for attribute in names]
)
def test_a_call_of_any_other_function_is_refused(module, attribute, tmp_path):
    with pytest.raises(UserError, match=f"x is refused: it calls '{module}.{attribute}'"):
        read_bytes(attack(module, attribute, "x"), tmp_path / "x")


@pytest.mark.parametrize(
    "body",
    [
        b"(" + push("touch MARKER") + b"ios\nsystem\n",
        b"(" + push_global("os", "system") + push("touch MARKER") + b"o",
        push_global("os", "system") + push(("touch MARKER",)) + b"\x81",
        push_global("subprocess", "Popen") + push((["touch", "MARKER"],)) + b"\x81",
        push_global("subprocess", "Popen") + push(()) + push({"args": ["touch", "MARKER"]}) + b"\x92",
    ],
    ids=["INST", "OBJ", "NEWOBJ of a function", "NEWOBJ", "NEWOBJ_EX"],
)
def test_every_opcode_that_calls_is_restricted(body, marker):
    with pytest.raises(UserError):
        read_bytes(make_pickle(body), marker.parent / "x")
    assert not marker.exists()


@pytest.mark.parametrize(("module", "kind"), [("logging", "FileHandler"), ("tarfile", "TarFile"), ("_io", "FileIO")])
def test_a_class_that_creates_a_file_is_inert(module, kind, marker):
    content = attack(module, kind, "MARKER", "w")
    assert isinstance(read_bytes(content, marker.parent / "x"), InertObject)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()


TARGETS = {
    "class": push_global("collections", "Counter"),
    "inert class": push_global("argparse", "Namespace"),
    "function": push_global("torch._utils", "_rebuild_tensor_v2"),
    "refused function": push_global("os", "system"),
    "type of torch": push_global("torch", "Size"),
    "tensor type": push_global("torch", "float32"),
    "container": b"}",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_state_for_a_function_or_class_is_refused(target, tmp_path):
    with pytest.raises(UserError, match="it changes a"):
        read_bytes(make_pickle(push_build(target, b"N" + push({"__doc__": "changed"}) + b"\x86")), tmp_path / "x")


def torchscript():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.ReLU()), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_is_refused(tmp_path):
    with pytest.raises(UserError, match="is refused: it is a TorchScript program"):
        read_bytes(torchscript(), tmp_path / "x")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_with_a_second_directory_is_refused(tmp_path):
    """Python reads the directory at the end of an archive, torch the one at the recorded offset."""
    content = torchscript()
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", content, end + 12)
    directory = content[start : start + size]
    decoy = directory.replace(b"constants.pkl", b"constants.pkx")
    with pytest.raises(UserError):
        read_bytes(content[: start + size] + decoy + content[end:], tmp_path / "x")


def test_a_tar_archive_in_the_legacy_format_is_not_unpacked(tmp_path):
    """``torch.load`` would unpack it, and a hard link in it could change the mode of any other file."""
    victim = tmp_path / "victim"
    victim.touch(mode=0o600)
    link = tarfile.TarInfo("storages")
    link.type, link.linkname, link.mode = tarfile.LNKTYPE, str(victim), 0o777
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("x"))
        file.addfile(link)
    content = bytearray(buffer.getvalue())
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    content[: len(head)] = head
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    with pytest.raises(UserError):
        read_bytes(content, tmp_path / "x")
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_the_source_of_a_module_is_never_written(tmp_path, monkeypatch):
    """``torch.load`` writes NAME.patch if ``dump_patches`` is set and the source differs from that in the file."""
    monkeypatch.chdir(tmp_path)
    patched = push_build(push_global("torch._utils", "_rebuild_tensor"), push({"dump_patches": True}))
    for kind in patched, push_global("torch.nn", "Module"):
        body = b"(" + push("module") + kind + push("x.py") + push("another source\n") + b"tQ"
        with contextlib.suppress(UserError):
            read_bytes(make_legacy_file(make_pickle(body)), tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]
