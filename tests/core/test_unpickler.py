"""Valid files are read back as they were written; a broken one is one sentence. Hostile files are in test_attacks."""

import argparse
import collections
import datetime
import io
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from support.core.comparison import same
from support.core.crafted_pickles import make_pickle, make_zip, push, push_call, push_global, read_bytes
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.inert import InertObject
from ssql_det.core.unpickler import read_tensors

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
WRITERS = {
    "archive": torch.save,
    "legacy": lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
    **{f"pickle {protocol}": lambda content, file, p=protocol: pickle.dump(content, file, p) for protocol in PROTOCOLS},
}
all_writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def write_and_read(content, path, write):
    with open(path, "wb") as file:
        write(content, file)
    return read_tensors(path)


# ---- valid files ---------------------------------------------------------------------------------------------------


def tensors():
    table = torch.arange(12.0).view(3, 4) / 7
    with_attributes = [table.clone(), nn.Parameter(table.clone())]
    for tensor in with_attributes:
        tensor.tag = "an attribute"
    types = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16)
    return {
        **{str(dtype): table.to(dtype) for dtype in (*types, torch.float32, torch.float64)},
        **{str(dtype): table.to(dtype) for dtype in (torch.complex64, torch.complex128)},
        "transposed": table.t(),
        "strided": table[1:, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "requires grad": table.clone().requires_grad_(),
        "parameter": nn.Parameter(table.clone()),
        "frozen parameter": nn.Parameter(table.clone(), requires_grad=False),
        "with attributes": with_attributes,
        "state_dict": nn.BatchNorm2d(3).state_dict(),
    }


def arrays():
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        **{code: table.astype(code) for code in ("?", "u1", "i8", "f2", "f8", "c8", ">f4", "U3", "S3", "O")},
        "columns first": np.asfortranarray(table),
        "transposed": table.reshape(2, 3, 2).transpose(1, 0, 2),
        "strided": table[:, ::2],
        "zero dimensions": np.array(3.5),
        "empty": np.empty((0, 3), np.int32),
        "of objects": np.array([{"a": 1}, None], dtype=object),
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("ä"), np.float64("inf")],
    }


def plain():
    return {
        "constants": [None, True, -3, 2**70, 1.5, float("inf"), 2 - 1j, "ä\n", "", b"\x00\xff", b"", bytearray(b"ab")],
        "containers": [[], {}, (), (1, (2, 3)), {1, 2}, frozenset("ab"), range(2, 9, 3), collections.deque([1], 3)],
        "counted": [collections.Counter("aab"), collections.defaultdict(int, a=1), collections.OrderedDict(b=1, a=2)],
        "times": [datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc), datetime.timedelta(1.5)],
        "torch": [torch.Size([3, 4]), torch.device("cpu"), torch.bfloat16],
    }


@all_writers
@pytest.mark.parametrize("content", [tensors, arrays, plain])
def test_content_is_read_as_written(content, write, tmp_path):
    read, written = write_and_read(content(), tmp_path / "x", write), content()
    assert [name for name in written if not same(read[name], written[name])] == []


@all_writers
def test_a_state_dict_keeps_its_metadata(write, tmp_path):
    state = nn.BatchNorm2d(3).state_dict()
    assert write_and_read(state, tmp_path / "x", write)._metadata == state._metadata


@pytest.mark.parametrize("write", [WRITERS["archive"], WRITERS["legacy"]], ids=["archive", "legacy"])
def test_tensors_that_share_a_storage_still_do(write, tmp_path):
    tensor = torch.zeros(4)
    read = write_and_read([tensor, tensor[2:]], tmp_path / "x", write)
    read[0][3] = 1
    assert read[1].tolist() == [0, 1]


@pytest.mark.parametrize("factory", [int, str, list, dict])
def test_a_default_factory_is_kept(factory, tmp_path):
    assert write_and_read(collections.defaultdict(factory), tmp_path / "x", torch.save)["missing"] == factory()


class Config:
    def __init__(self, **fields):
        vars(self).update(fields)


class Group(dict):
    pass


class Names(list):
    pass


class Pair(tuple):
    __slots__ = ()


@all_writers
def test_objects_of_other_classes_are_inert_and_keep_their_state(write, tmp_path):
    group, names = Group(lr=0.1), Names(["cat", "dog"])
    group.source = "file"
    objects = [argparse.Namespace(lr=0.1), Config(lr=0.1, sub=Config(a=1)), group, names, Pair((1, 2))]
    namespace, config, group, names, pair = read = write_and_read(objects, tmp_path / "x", write)
    assert all(isinstance(each, InertObject) for each in read)
    assert repr(namespace) == "<inert argparse.Namespace>"
    assert namespace.state == {"lr": 0.1}
    assert config.state["lr"] == 0.1
    assert config.state["sub"].state == {"a": 1}
    assert (group.entries, group.state) == ({"lr": 0.1}, {"source": "file"})
    assert names.elements == ["cat", "dog"]
    assert pair.args == ((1, 2),)


def test_an_enumeration_member_is_inert_in_either_pickled_form(tmp_path):
    """Python before 3.11.4 pickles it as a ``getattr`` call, which is refused for any class that is not inert."""
    member = push_call(push_global("builtins", "getattr"), push_global("torch_extra", "Mode"), push("TRAIN"))
    read = read_bytes(make_pickle(member), tmp_path / "x.pkl")
    assert (repr(read), read.args) == ("<inert torch_extra.Mode>", ("TRAIN",))
    other = push_call(push_global("builtins", "getattr"), push_global("builtins", "dict"), push("__subclasses__"))
    with pytest.raises(UserError, match=r"builtins\.getattr"):
        read_bytes(make_pickle(other), tmp_path / "x.pkl")


@pytest.mark.parametrize("write", [WRITERS["archive"], WRITERS["legacy"]], ids=["archive", "legacy"])
@pytest.mark.filterwarnings("error")
def test_a_pickled_module_is_inert_and_keeps_its_weights(write, tmp_path):
    linear = nn.Linear(2, 3)
    read = write_and_read(linear, tmp_path / "x", write)
    assert isinstance(read, InertObject)
    assert same(read.state["_parameters"]["weight"], linear.weight)


def test_a_pickle_of_python_2_and_numpy_1_is_read(tmp_path):
    """As in the model zoos of Detectron and Detectron2: strings without encoding, modules by their old names."""
    data = np.array([1, -2, 3.5], np.float32).tobytes()
    content = (
        b"\x80\x02}(U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(data)]) + data + b"tb"  # the array's bytes are a Python 2 string
        b"U\x01scnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tbU\x04\x00\x00\x80?\x86R"
        b"U\x01occopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR}U\x01aK\x01sb"
        b"U\x01kc__builtin__\nset\n]K\x07a\x85Ru."
    )
    read = read_bytes(content, tmp_path / "x.pkl")
    assert same(read["w"], np.array([1, -2, 3.5], np.float32))
    assert same(read["s"], np.float32(1))
    assert read["o"].state == {"a": 1}
    assert read["k"] == {7}


@all_writers
@pytest.mark.parametrize("array", [np.zeros(2, "f4,i4"), np.zeros(2, "M8[D]")], ids=["structured", "dates"])
def test_an_array_of_an_unsupported_type_is_refused(array, write, tmp_path):
    with pytest.raises(UserError, match=r"arrays of .* are not supported"):
        write_and_read(array, tmp_path / "x", write)


# ---- invalid files -------------------------------------------------------------------------------------------------


def make_valid_file(write, content=None):
    buffer = io.BytesIO()
    write(content or {**tensors(), **arrays(), "foreign": argparse.Namespace(a=1)}, buffer)
    return buffer.getvalue()


INVALID = {
    "empty": (b"", "the file is empty"),
    "web page": (b"<!DOCTYPE html>\n<html>404</html>", "web page"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "text": (b"hello\nworld\n", "another format"),
    "random bytes": (random.Random(0).randbytes(4096), "another format"),
    "archive cut short": (make_valid_file(torch.save)[:-100], "cut short"),
    "legacy cut short": (make_valid_file(WRITERS["legacy"])[:-10], "middle of a tensor"),
    "pickle cut short": (make_valid_file(pickle.dump)[:-10], "cut short"),
    "arrays of NumPy": (make_zip({"w.npy": b"\x93NUMPY"}), "that torch.save did not write"),
    "empty archive": (make_zip({}), "another format"),
    "two archives in one": (make_zip({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "that torch.save did not write"),
    "big-endian": (make_zip({"a/data.pkl": b"N.", "a/byteorder": b"big"}), "big-endian"),
    "a long error": (make_pickle(b"I" + b"no such number " * 250 + b"\n"), "..."),
}


@pytest.mark.parametrize(("content", "hint"), INVALID.values(), ids=INVALID)
def test_an_invalid_file_is_one_sentence(content, hint, tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError) as mistake:
        read_bytes(content, path)
    sentence = str(mistake.value)
    assert sentence.startswith(f"{path} is not a readable checkpoint: ")
    assert hint in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500


@pytest.mark.parametrize(
    ("name", "hint"), [("no.pth", "there is no file"), (".", "is a directory"), ("x/y", "no file")]
)
def test_an_invalid_path_is_one_sentence(name, hint, tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match=hint) as mistake:
        read_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(mistake.value)


def change_archived_pickle(change):
    """A valid archive in which ``change`` was applied to the pickle, with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(make_valid_file(torch.save))) as file:
        records = {name: file.read(name) for name in file.namelist()}
    return make_zip(records | {"archive/data.pkl": change(records["archive/data.pkl"])})


TO_DAMAGE = {
    "archive": lambda change: change(make_valid_file(torch.save)),
    "archive's pickle": change_archived_pickle,
    "legacy": lambda change: change(make_valid_file(WRITERS["legacy"])),
    "pickle 2": lambda change: change(make_valid_file(WRITERS["pickle 2"])),
    "pickle 5": lambda change: change(make_valid_file(WRITERS["pickle 5"])),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("apply", TO_DAMAGE.values(), ids=TO_DAMAGE)
def test_a_damaged_file_is_read_or_one_sentence(apply, tmp_path):
    rng = random.Random(0)

    def damage(content):
        content = bytearray(content)
        for _ in range(rng.choice([0, 1, 1, 2, 20])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content[: rng.choice([len(content), len(content), rng.randrange(len(content))])])

    outcomes = collections.Counter()
    for _ in range(80):
        try:
            read_bytes(apply(damage), tmp_path / "x")
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > outcomes["read"] > 0
