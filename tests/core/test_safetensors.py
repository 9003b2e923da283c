"""Safetensors files: what was written is read, by the library as well, and equal content is equal bytes."""

import io
import json
import random
import struct

import pytest
import torch
from safetensors import safe_open

from ssql_det.core.errors import UserError
from ssql_det.core.tensor_files import is_safetensors, read_safetensors, write_safetensors

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
METADATA = {"format": "some", "words": 'ä "quoted" \n'}


def tensors():
    generator = torch.Generator().manual_seed(0)
    drawn = {
        f"of.{str(dtype).removeprefix('torch.')}": (100 * torch.randn(3, 5, generator=generator)).to(dtype)
        for dtype in DTYPES
    }
    shapes = {"scalar": torch.tensor(0.5), "empty": torch.zeros(0, 3, dtype=torch.int64), "one": torch.ones(1, 1)}
    turned = {"turned": torch.arange(6.0).view(2, 3).T, "of a whole": torch.arange(9)[3:7:2]}
    return drawn | shapes | turned | {"trained": torch.nn.Parameter(torch.ones(2))}


def written(content, metadata=METADATA):
    file = io.BytesIO()
    write_safetensors(content, metadata, file)
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(written(tensors()))
    return tmp_path / "file.safetensors"


def test_every_type_and_shape_comes_back(path):
    found, metadata = read_safetensors(path)
    expected = tensors()
    assert metadata == METADATA
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def test_numbers_that_are_none_keep_their_bits(tmp_path):
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    (tmp_path / "odd").write_bytes(written({"odd": odd}))
    assert torch.equal(read_safetensors(tmp_path / "odd")[0]["odd"].view(torch.int32), odd.view(torch.int32))


def test_the_library_reads_it_and_tensors_are_aligned(path):
    expected = tensors()
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(expected)
        assert torch.equal(file.get_tensor("turned"), expected["turned"])
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    header = json.loads(path.read_bytes()[8 : 8 + length])
    header.pop("__metadata__")
    assert length % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % expected[name].element_size() == 0, name


def test_equal_content_is_equal_bytes_in_whatever_order_it_came():
    expected = written(tensors())
    for seed in range(3):
        items = list(tensors().items())
        random.Random(seed).shuffle(items)
        assert written(dict(items)) == expected
    assert written(tensors() | {"one": torch.zeros(1, 1)}) != expected
    assert written(tensors(), {**METADATA, "format": "other"}) != expected


def test_a_file_without_tensors_or_metadata_is_one_too(tmp_path):
    (tmp_path / "empty").write_bytes(written({}, {}))
    assert is_safetensors(tmp_path / "empty")
    assert read_safetensors(tmp_path / "empty") == ({}, {})


@pytest.mark.parametrize("kept", [0.3, 0.9, -1], ids=["in the header", "in the tensors", "but for a byte"])
def test_a_truncated_file_is_one_sentence(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))] if kept > 0 else whole[:-1])
    with pytest.raises(UserError, match=rf"^{path} is not a readable safetensors file: [^\n]+; get it anew$"):
        read_safetensors(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"gone is not a readable safetensors file: .*No such file"):
        read_safetensors(tmp_path / "gone")


OTHERS = {
    "nothing": b"",
    "text": b"weights of a network\n",
    "an archive": b"PK\x03\x04" + bytes(60),
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is a list": struct.pack("<Q", 2) + b"[]" + bytes(8),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_it_is_known_by_its_first_bytes(path, tmp_path, content):
    assert is_safetensors(path)
    (tmp_path / "other").write_bytes(content)
    assert not is_safetensors(tmp_path / "other")
    assert not is_safetensors(tmp_path)
    assert not is_safetensors(tmp_path / "gone")
