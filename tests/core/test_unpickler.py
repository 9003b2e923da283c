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
from support.core.crafted_pickles import archive, called, name, program, read_bytes, value
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.core.unpickler import InertObject, read_tensors

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
WRITERS = {
    "archive": torch.save,
    "legacy": lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
    **{f"pickle {protocol}": lambda content, file, p=protocol: pickle.dump(content, file, p) for protocol in PROTOCOLS},
}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def written_and_read(content, path, write):
    with open(path, "wb") as file:
        write(content, file)
    return read_tensors(path)


# ---------------------------------------------------------------- good files


def tensors():
    table = torch.arange(12.0).view(3, 4) / 7
    tagged = [table.clone(), nn.Parameter(table.clone())]
    for tensor in tagged:
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
        "with attributes": tagged,
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


@each_writer
@pytest.mark.parametrize("content", [tensors, arrays, plain])
def test_what_was_written_is_read(content, write, tmp_path):
    read, written = written_and_read(content(), tmp_path / "x", write), content()
    assert [name for name in written if not same(read[name], written[name])] == []


@each_writer
def test_a_state_dict_keeps_its_metadata(write, tmp_path):
    state = nn.BatchNorm2d(3).state_dict()
    assert written_and_read(state, tmp_path / "x", write)._metadata == state._metadata


@pytest.mark.parametrize("write", [WRITERS["archive"], WRITERS["legacy"]], ids=["archive", "legacy"])
def test_tensors_that_shared_a_storage_still_do(write, tmp_path):
    whole = torch.zeros(4)
    read = written_and_read([whole, whole[2:]], tmp_path / "x", write)
    read[0][3] = 1
    assert read[1].tolist() == [0, 1]


@pytest.mark.parametrize("factory", [int, str, list, dict])
def test_a_default_factory_still_works(factory, tmp_path):
    assert written_and_read(collections.defaultdict(factory), tmp_path / "x", torch.save)["missing"] == factory()


class Config:
    def __init__(self, **fields):
        vars(self).update(fields)


class Group(dict):
    pass


class Names(list):
    pass


class Pair(tuple):
    __slots__ = ()


@each_writer
def test_foreign_objects_are_inert_and_keep_what_they_held(write, tmp_path):
    group, names = Group(lr=0.1), Names(["cat", "dog"])
    group.source = "file"
    foreign = [argparse.Namespace(lr=0.1), Config(lr=0.1, sub=Config(a=1)), group, names, Pair((1, 2))]
    namespace, config, group, names, pair = read = written_and_read(foreign, tmp_path / "x", write)
    assert all(isinstance(thing, InertObject) for thing in read)
    assert repr(namespace) == "<inert argparse.Namespace>"
    assert namespace.state == {"lr": 0.1}
    assert config.state["lr"] == 0.1
    assert config.state["sub"].state == {"a": 1}
    assert (group.entries, group.state) == ({"lr": 0.1}, {"source": "file"})
    assert names.elements == ["cat", "dog"]
    assert pair.args == ((1, 2),)


def test_a_member_of_an_enumeration_is_inert_however_it_was_pickled(tmp_path):
    """Python 3.11 before .4 takes it from its class by ``getattr``; of anything that is not foreign that is refused."""
    member = called(name("builtins", "getattr"), name("torch_extra", "Mode"), value("TRAIN"))
    read = read_bytes(program(member), tmp_path / "x.pkl")
    assert (repr(read), read.args) == ("<inert torch_extra.Mode>", ("TRAIN",))
    taken = called(name("builtins", "getattr"), name("builtins", "dict"), value("__subclasses__"))
    with pytest.raises(UserError, match=r"builtins\.getattr"):
        read_bytes(program(taken), tmp_path / "x.pkl")


@pytest.mark.parametrize("write", [WRITERS["archive"], WRITERS["legacy"]], ids=["archive", "legacy"])
@pytest.mark.filterwarnings("error")
def test_a_whole_module_is_inert_and_shows_its_weights(write, tmp_path):
    linear = nn.Linear(2, 3)
    read = written_and_read(linear, tmp_path / "x", write)
    assert isinstance(read, InertObject)
    assert same(read.state["_parameters"]["weight"], linear.weight)


def test_a_pickle_of_python_2_and_numpy_1_is_read(tmp_path):
    """As Detectron's and Detectron2's model zoo has them: strings without encoding, modules by their old names."""
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


@each_writer
@pytest.mark.parametrize("array", [np.zeros(2, "f4,i4"), np.zeros(2, "M8[D]")], ids=["structured", "dates"])
def test_an_array_is_read_right_or_not_at_all(array, write, tmp_path):
    with pytest.raises(UserError, match=r"arrays of .* are not understood"):
        written_and_read(array, tmp_path / "x", write)


# ---------------------------------------------------------------- bad files


def good(write, content=None):
    buffer = io.BytesIO()
    write(content or {**tensors(), **arrays(), "foreign": argparse.Namespace(a=1)}, buffer)
    return buffer.getvalue()


BAD = {
    "empty": (b"", "the file is empty"),
    "web page": (b"<!DOCTYPE html>\n<html>404</html>", "web page"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "text": (b"hello\nworld\n", "another format"),
    "random bytes": (random.Random(0).randbytes(4096), "another format"),
    "archive cut short": (good(torch.save)[:-100], "cut short"),
    "legacy cut short": (good(WRITERS["legacy"])[:-10], "middle of a tensor"),
    "pickle cut short": (good(pickle.dump)[:-10], "cut short"),
    "arrays of NumPy": (archive({"w.npy": b"\x93NUMPY"}), "not one that torch.save wrote"),
    "empty archive": (archive({}), "another format"),
    "two archives in one": (archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "not one that torch.save wrote"),
    "big-endian": (archive({"a/data.pkl": b"N.", "a/byteorder": b"big"}), "big-endian"),
    "a long story": (good(WRITERS["legacy"], [1])[:-4] + pickle.dumps(["no\nsuch storage " * 1000]), "[...]"),
}


@pytest.mark.parametrize(("content", "hint"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_sentence(content, hint, tmp_path):
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
def test_a_bad_path_is_one_sentence(name, hint, tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match=hint) as mistake:
        read_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(mistake.value)


def rezipped(change):
    """A good archive whose pickle is changed and whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(good(torch.save))) as file:
        records = {name: file.read(name) for name in file.namelist()}
    return archive(records | {"archive/data.pkl": change(records["archive/data.pkl"])})


FUZZED = {
    "archive": lambda change: change(good(torch.save)),
    "archive's pickle": rezipped,
    "legacy": lambda change: change(good(WRITERS["legacy"])),
    "pickle 2": lambda change: change(good(WRITERS["pickle 2"])),
    "pickle 5": lambda change: change(good(WRITERS["pickle 5"])),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damaged", FUZZED.values(), ids=FUZZED)
def test_damage_anywhere_is_a_sentence_or_goes_unnoticed(damaged, tmp_path):
    dice = random.Random(0)

    def damage(content):
        content = bytearray(content)
        for _ in range(dice.choice([0, 1, 1, 2, 20])):
            content[dice.randrange(len(content))] = dice.randrange(256)
        return bytes(content[: dice.choice([len(content), len(content), dice.randrange(len(content))])])

    outcomes = collections.Counter()
    for _ in range(80):
        try:
            read_bytes(damaged(damage), tmp_path / "x")
            outcomes["read"] += 1
        except UserError:
            outcomes["sentence"] += 1
    assert outcomes["sentence"] > outcomes["read"] > 0
