"""What a hostile file tries. Each attack works on ``pickle.load``, or did on ``torch.load`` when it was written."""

import contextlib
import io
import os
import pickle
import stat
import struct
import tarfile

import pytest
import torch
from support.core.crafted_pickles import archive, called, given, legacy, name, program, read_bytes, value
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.unpickler import InertObject

ROUTES = {
    "pickle": lambda content: content,
    "archive": lambda content: archive({"x/data.pkl": content}),
    "legacy": legacy,
    "in bytes": lambda content: program(called(name("torch.storage", "_load_from_bytes"), value(content))),
    "in bytes, legacy": lambda content: ROUTES["in bytes"](legacy(content)),
}
each_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)

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
    return program(called(name(module, attribute), *(value(part) for part in arguments)))


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that an attack makes if it is let."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "MARKER"


@pytest.mark.parametrize("parts", ATTACKS, ids=lambda parts: ".".join(parts[:2]))
def test_the_attacks_are_real(parts, marker):
    pickle.loads(attack(*parts))
    assert marker.exists()


@each_route
@pytest.mark.parametrize("parts", ATTACKS, ids=lambda parts: ".".join(parts[:2]))
def test_an_attack_is_refused_before_it_runs(parts, route, marker):
    with pytest.raises(UserError, match=f"x is refused: it wants to call '{parts[0]}.{parts[1]}'"):
        read_bytes(route(attack(*parts)), marker.parent / "x")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "attribute"), [(module, attribute) for module, names in REFUSED.items() for attribute in names]
)
def test_a_call_of_what_is_not_on_the_list_is_refused(module, attribute, tmp_path):
    with pytest.raises(UserError, match=f"x is refused: it wants to call '{module}.{attribute}'"):
        read_bytes(attack(module, attribute, "x"), tmp_path / "x")


@pytest.mark.parametrize(
    "body",
    [
        b"(" + value("touch MARKER") + b"ios\nsystem\n",
        b"(" + name("os", "system") + value("touch MARKER") + b"o",
        name("os", "system") + value(("touch MARKER",)) + b"\x81",
        name("subprocess", "Popen") + value((["touch", "MARKER"],)) + b"\x81",
        name("subprocess", "Popen") + value(()) + value({"args": ["touch", "MARKER"]}) + b"\x92",
    ],
    ids=["INST", "OBJ", "NEWOBJ of a function", "NEWOBJ", "NEWOBJ_EX"],
)
def test_no_opcode_calls_by_a_back_door(body, marker):
    with pytest.raises(UserError):
        read_bytes(program(body), marker.parent / "x")
    assert not marker.exists()


@pytest.mark.parametrize(("module", "kind"), [("logging", "FileHandler"), ("tarfile", "TarFile"), ("_io", "FileIO")])
def test_a_class_that_would_make_a_file_is_inert(module, kind, marker):
    content = attack(module, kind, "MARKER", "w")
    assert isinstance(read_bytes(content, marker.parent / "x"), InertObject)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()


TARGETS = {
    "class": name("collections", "Counter"),
    "inert class": name("argparse", "Namespace"),
    "function": name("torch._utils", "_rebuild_tensor_v2"),
    "refused function": name("os", "system"),
    "type of torch": name("torch", "Size"),
    "tensor type": name("torch", "float32"),
    "container": b"}",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_state_that_would_change_the_program_is_refused(target, tmp_path):
    with pytest.raises(UserError, match="it wants to change a"):
        read_bytes(program(given(target, b"N" + value({"__doc__": "changed"}) + b"\x86")), tmp_path / "x")


def torchscript():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.ReLU()), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_is_refused(tmp_path):
    with pytest.raises(UserError, match="is refused: it is a TorchScript program"):
        read_bytes(torchscript(), tmp_path / "x")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_behind_a_second_directory_is_not_read(tmp_path):
    """Python takes the directory at the end of an archive, torch the one whose place is written down."""
    content = torchscript()
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", content, end + 12)
    directory = content[start : start + size]
    decoy = directory.replace(b"constants.pkl", b"constants.pkx")
    with pytest.raises(UserError):
        read_bytes(content[: start + size] + decoy + content[end:], tmp_path / "x")


def test_a_tar_archive_that_looks_legacy_is_not_unpacked(tmp_path):
    """``torch.load`` would: a hard link in it lets the file set the mode of any other."""
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


def test_the_source_of_a_module_is_never_written_out(tmp_path, monkeypatch):
    """``torch.load`` writes NAME.patch for what has ``dump_patches`` and another source than the file says."""
    monkeypatch.chdir(tmp_path)
    patched = given(name("torch._utils", "_rebuild_tensor"), value({"dump_patches": True}))
    for thing in patched, name("torch.nn", "Module"):
        body = b"(" + value("module") + thing + value("x.py") + value("another source\n") + b"tQ"
        with contextlib.suppress(UserError):
            read_bytes(legacy(program(body)), tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]
