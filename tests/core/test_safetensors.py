"""Safetensors files are read as written, also by their own library, and equal content gives equal bytes."""

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
    typed = {
        f"of.{str(dtype).removeprefix('torch.')}": (100 * torch.randn(3, 5, generator=generator)).to(dtype)
        for dtype in DTYPES
    }
    shapes = {"scalar": torch.tensor(0.5), "empty": torch.zeros(0, 3, dtype=torch.int64), "one": torch.ones(1, 1)}
    views = {"transposed": torch.arange(6.0).view(2, 3).T, "strided": torch.arange(9)[3:7:2]}
    return typed | shapes | views | {"trained": torch.nn.Parameter(torch.ones(2))}


def to_bytes(content, metadata=METADATA):
    file = io.BytesIO()
    write_safetensors(content, metadata, file)
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file.safetensors").write_bytes(to_bytes(tensors()))
    return tmp_path / "file.safetensors"


def test_every_dtype_and_shape_is_read_as_written(path):
    loaded, metadata = read_safetensors(path)
    expected = tensors()
    assert metadata == METADATA
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(loaded[name], tensor), name


def test_special_floats_keep_their_bits(tmp_path):
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    (tmp_path / "special").write_bytes(to_bytes({"special": special}))
    assert torch.equal(
        read_safetensors(tmp_path / "special")[0]["special"].view(torch.int32), special.view(torch.int32)
    )


def test_the_safetensors_library_reads_it_and_tensors_are_aligned(path):
    expected = tensors()
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(expected)
        assert torch.equal(file.get_tensor("transposed"), expected["transposed"])
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    header = json.loads(path.read_bytes()[8 : 8 + length])
    header.pop("__metadata__")
    assert length % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % expected[name].element_size() == 0, name


def test_equal_content_gives_equal_bytes_in_any_order():
    expected = to_bytes(tensors())
    for seed in range(3):
        items = list(tensors().items())
        random.Random(seed).shuffle(items)
        assert to_bytes(dict(items)) == expected
    assert to_bytes(tensors() | {"one": torch.zeros(1, 1)}) != expected
    assert to_bytes(tensors(), {**METADATA, "format": "other"}) != expected


def test_a_file_without_tensors_and_metadata_is_valid(tmp_path):
    (tmp_path / "empty").write_bytes(to_bytes({}, {}))
    assert is_safetensors(tmp_path / "empty")
    assert read_safetensors(tmp_path / "empty") == ({}, {})


@pytest.mark.parametrize("fraction", [0.3, 0.9, -1], ids=["in the header", "in the tensors", "by one byte"])
def test_a_truncated_file_is_one_sentence(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))] if fraction > 0 else content[:-1])
    with pytest.raises(
        UserError, match=rf"^{path} is not a readable safetensors file: [^\n]+; download or convert it again$"
    ):
        read_safetensors(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"gone is not a readable safetensors file: .*No such file"):
        read_safetensors(tmp_path / "gone")


OTHER_FILES = {
    "empty": b"",
    "text": b"weights of a network\n",
    "a zip archive": b"PK\x03\x04" + bytes(60),
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is a list": struct.pack("<Q", 2) + b"[]" + bytes(8),
}


@pytest.mark.parametrize("content", OTHER_FILES.values(), ids=OTHER_FILES)
def test_it_is_recognized_by_its_first_bytes(path, tmp_path, content):
    assert is_safetensors(path)
    (tmp_path / "other").write_bytes(content)
    assert not is_safetensors(tmp_path / "other")
    assert not is_safetensors(tmp_path)
    assert not is_safetensors(tmp_path / "gone")
