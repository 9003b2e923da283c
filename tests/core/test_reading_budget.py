"""A file costs what its size allows, whatever it claims; content that is legal is not refused for its cost."""

import contextlib
import io
import json
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from support.core import limited_reading
from support.core.comparison import same
from support.core.costly_files import FILES
from support.core.crafted_pickles import make_pickle, make_zip, push_global, read_bytes

from ssql_det.convert import read_content
from ssql_det.core import reading_budget
from ssql_det.core.errors import UserError
from ssql_det.core.unpickler import read_tensors

CORPUS = Path(__file__).parents[1] / "fuzz/corpus"


@pytest.fixture(scope="module")
def exit_codes(tmp_path_factory):
    """The exit codes of readers with a limit of memory and time, by the name of the file."""
    folder = tmp_path_factory.mktemp("costly")
    for name, make in FILES.items():
        content = make()
        assert len(content) <= 1 << 20, name
        (folder / name).write_bytes(content)
    command = [sys.executable, limited_reading.__file__, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_small_file_has_a_small_cost(name, exit_codes):
    assert exit_codes[name] == 0


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_a_file_that_fuzzing_found_is_read_or_one_sentence(path, tmp_path):
    with contextlib.suppress(UserError):
        read_content(path)
    with contextlib.suppress(UserError):
        read_bytes(make_zip({"x/data.pkl": path.read_bytes(), "x/data/0": bytes(16)}), tmp_path / "x")


COUNT = 2_000
CONTENTS = {
    "tensors": lambda: {f"layer{index}.weight": torch.full((2,), float(index)) for index in range(COUNT)},
    "optimizer": lambda: {index: {"step": torch.tensor(1.0), "exp_avg": torch.ones(1)} for index in range(COUNT)},
    "arrays": lambda: {f"layer{index}": np.full(2, index) for index in range(COUNT)},
    "scalars": lambda: [np.float64(index) for index in range(COUNT)],
    "lists of numbers": lambda: [[index, index / 7] for index in range(10 * COUNT)],
    "empty containers": lambda: [[[], {}, set(), OrderedDict()] for _ in range(COUNT)],
    "tuples as keys": lambda: {(index, index % 7): None for index in range(COUNT)},
    "floats as keys": lambda: {index / 7: None for index in range(COUNT)},
    "shared lists": lambda: [[1, 2, 3]] * COUNT,
    "some deques": lambda: [deque([index]) for index in range(500)] + [defaultdict(list) for _ in range(500)],
}


@pytest.mark.parametrize("make", CONTENTS.values(), ids=CONTENTS)
def test_legal_content_is_within_the_budget(make, tmp_path, monkeypatch):
    monkeypatch.setattr(reading_budget, "_FREE", 1 << 20)  # a sixteenth, so that little content says enough
    content = make()
    torch.save(content, tmp_path / "x")
    assert same(read_tensors(tmp_path / "x"), content)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records_are_refused(method, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("x/data.pkl", make_pickle(b"N"))
    with pytest.raises(UserError, match="is refused: its records are compressed"):
        read_bytes(buffer.getvalue(), tmp_path / "x")


@pytest.mark.parametrize("depth", [100, 300])
def test_nested_content_is_read_to_a_limit(depth, tmp_path):
    content = make_pickle(b"]" * depth + b"a" * (depth - 1))
    if depth < 200:
        assert len(read_bytes(content, tmp_path / "x")) == 1
    else:
        with pytest.raises(UserError, match="is refused: its content is nested more than 200 deep"):
            read_bytes(content, tmp_path / "x")


def test_an_opcode_that_is_not_listed_is_not_read(tmp_path):
    """Extensions, buffers outside the file and identifiers of text are never in a checkpoint."""
    for opcode in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x97", b"N\x98", b"Px\n"):
        with pytest.raises(UserError, match="is not a readable checkpoint"):
            read_bytes(make_pickle(opcode), tmp_path / "x")


# ---- tensors of other kinds ----------------------------------------------------------------------------------------

formats = pytest.mark.parametrize("new", [True, False], ids=["archive", "legacy"])
VIEWED = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]


@formats
@pytest.mark.parametrize("name", VIEWED)
def test_types_without_a_storage_class_are_read(name, new, tmp_path):
    dtype = getattr(torch, name)
    tensor = torch.arange(64, dtype=torch.uint8).view(dtype)[1:5]
    torch.save({"w": tensor}, tmp_path / "x", _use_new_zipfile_serialization=new)
    read = read_tensors(tmp_path / "x")["w"]
    assert (read.dtype, read.shape) == (dtype, tensor.shape)
    assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def make_quantized():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


LAZY = "lazily negated or conjugated tensors"
UNSUPPORTED = {
    "negated": (LAZY, lambda: torch.ones(3)._neg_view()),
    "conjugated": (LAZY, lambda: torch.ones(3, dtype=torch.complex64).conj()),
    "an imaginary part": (LAZY, lambda: torch.ones(3, dtype=torch.complex64).conj().imag),
    "a negated parameter": (LAZY, lambda: torch.nn.Parameter(torch.ones(3)._neg_view())),
    "quantized": ("quantized tensors", make_quantized),
    "sparse": ("sparse tensors", lambda: torch.eye(3).to_sparse()),
    "meta": ("tensors without values, of the meta device", lambda: torch.empty(2, device="meta")),
    "bits": ("tensors of torch.bits8", lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8)),
}


@pytest.mark.filterwarnings("ignore")
@formats
@pytest.mark.parametrize(("name", "make"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_other_kinds_of_tensors_are_named(name, make, new, tmp_path):
    torch.save({"w": make()}, tmp_path / "x", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=f"x has {name}, which are not supported; save "):
        read_tensors(tmp_path / "x")


def test_a_foreign_default_factory_is_dropped(tmp_path):
    factory = push_global("argparse", "Namespace") + b"\x85R"
    read = read_bytes(make_pickle(push_global("collections", "defaultdict") + factory), tmp_path / "x")
    with pytest.raises(KeyError):
        read["missing"]
