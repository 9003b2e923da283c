"""Broken and malicious files are refused with one sentence; their code never runs, and no output is left."""

import argparse
import collections
import enum
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from support.convert.crafted_checkpoints import (
    FILES,
    WRITERS,
    ClaimedStorage,
    ClaimedTensor,
    ShellCommand,
    TensorInBytes,
    make_checkpoint,
    make_expanded_state,
    make_overlapping_zip,
    make_state,
    save_pickle,
    to_arrays,
    write_claims,
)
from support.core.crafted_pickles import make_legacy_file, make_zip

from ssql_det.convert import MSRA, check_output, read_checkpoint, write_checkpoint
from ssql_det.core.errors import UserError

pytestmark = pytest.mark.slow

LONG = "x" * 100_000
ONE = torch.ones(1)
TERMINAL = "a\nb\r\x1b[31mred\x1b[0m\x07"


def get_error(path, **options):
    """The message of the error when the file is converted; nothing is written."""
    before = sorted(os.listdir(path.parent))
    with pytest.raises(UserError) as error:
        write_checkpoint(read_checkpoint(path, **options), path.parent / "converted.pth", "ssql_det")
    sentence = str(error.value)
    assert sorted(os.listdir(path.parent)) == before
    assert str(path) in sentence
    assert sentence.isprintable()
    assert len(sentence) < 1000
    return sentence


def save(content, path, writer=torch.save):
    writer(content, path)
    return path


def make_state_without(start, name="narrow_resnet"):
    return {key: value for key, value in make_expanded_state(name).items() if not key.startswith(start)}


# ---------------------------------------------------------------- code in a file

PLACES = {
    "nothing else": lambda code, tensors: code,
    "another entry": lambda code, tensors: {"state_dict": tensors, "epoch": code},
    "among the tensors": lambda code, tensors: {**tensors, "fc.weight": code},
    "instead of a tensor": lambda code, tensors: {**tensors, "conv1.weight": code},
    "deep in the options": lambda code, tensors: {
        "state_dict": tensors,
        "args": argparse.Namespace(a=[{"b": (code,)}]),
    },
    "in an array": lambda code, tensors: {"model": tensors, "x": np.array([code, None], dtype=object)},
    "as a key": lambda code, tensors: {"model": tensors, code: 1},
    "in bytes": lambda code, tensors: {"model": tensors, "x": TensorInBytes(in_bytes(code))},
    "in a state dict's metadata": lambda code, tensors: {"state_dict": with_metadata(tensors, code)},
}


def in_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_metadata(tensors, metadata):
    tensors = collections.OrderedDict(tensors)
    tensors._metadata = metadata
    return tensors


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_code_in_a_file_never_runs(place, writer, tmp_path):
    marker = tmp_path / "ran"
    path = save(place(ShellCommand(f"touch {marker}"), to_arrays(make_state())), tmp_path / "x.pth", writer)
    assert "is refused: it calls 'posix.system'" in get_error(path)
    assert not marker.exists()
    if writer in (WRITERS["zip"], WRITERS["legacy"]):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()


def test_code_that_is_not_unpickled_never_runs(tmp_path):
    """In a second pickle of the archive, or after the end of a pickle."""
    marker, path = tmp_path / "ran", tmp_path / "x.pth"
    code = pickle.dumps(ShellCommand(f"touch {marker}"))
    torch.save(make_state(), path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/code.pkl", code)
    assert len(read_checkpoint(path).tensors) == 72
    path.write_bytes(pickle.dumps(to_arrays(make_state())) + code)
    assert len(read_checkpoint(path).tensors) == 72
    assert not marker.exists()


@pytest.mark.parametrize("container", ["model", "online"])
def test_a_default_factory_is_never_called(container, tmp_path):
    """The file is a defaultdict that lacks the keys by which a format is recognized."""
    marks = {"__metadata__": torch.ones(1), "ssql_det": torch.ones(1)}
    content = collections.defaultdict(os.system, {container: {**make_state(), **marks}})
    get_error(save(content, tmp_path / "x.pth"))


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_other_objects_in_the_file_are_ignored(writer, tmp_path):
    foreign = {
        "args": argparse.Namespace(lr=0.1, path=pathlib.Path("x")),
        "color": Color.RED,
        "function": torch.nn.functional.relu,
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]},
    }
    checkpoint = read_checkpoint(save({**foreign, "state_dict": make_state()}, tmp_path / "x.pth", writer))
    assert checkpoint.coverage.percent == 100
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in make_state().items())


@pytest.mark.parametrize("wrapped", [lambda module: module, lambda module: {"model": module}], ids=["alone", "inside"])
def test_a_whole_module_is_refused(wrapped, tmp_path):
    path = save(wrapped(torchvision.models.resnet18()), tmp_path / "x.pth")
    assert "there are no tensors in it under the usual names" in get_error(path)


# ---------------------------------------------------------------- broken files


@pytest.mark.parametrize(("writer", "name"), FILES.values(), ids=FILES)
def test_a_truncated_file_is_refused(writer, name, tmp_path):
    path = save(make_state(), tmp_path / name, writer)
    content = path.read_bytes()
    cuts = [0, 1, 7, 8, 9, 10, 64, 500, 3000, 10_000, *(len(content) * part // 10 for part in range(1, 10))]
    for length in [*cuts, *(len(content) - back for back in (1000, 100, 30, 2, 1))]:
        path.write_bytes(content[:length])
        assert "is not a readable" in get_error(path), length


NOT_CHECKPOINTS = {
    "empty": (b"", "the file is empty"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "it looks like a web page"),
    "text": (b"hello\n\x1b[31mworld\n", "is not a readable checkpoint"),
    "zeros": (bytes(10_000), "is not a readable checkpoint"),
}


@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.safetensors"])
@pytest.mark.parametrize(("content", "hint"), NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused(content, hint, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert hint in get_error(path)


def test_a_path_that_cannot_be_read_is_refused(tmp_path):
    assert "is a directory" in get_error(tmp_path)
    assert "there is no file" in get_error(tmp_path / "no.pth")
    with pytest.raises(UserError, match="too long"):
        read_checkpoint(tmp_path / ("x" * 5000))


def cyclic():
    content = {}
    content["state_dict"] = content["model"] = content
    return content


NO_NETWORKS = {
    "no tensors": {},
    "empty state dict": {"state_dict": {}},
    "list": [1, 2],
    "tensor": torch.ones(3),
    "nothing": None,
    "container that holds itself": cyclic(),
    "names that are numbers": {**make_state(), 3: torch.ones(1)},
    "names that are numbers, inside": {"state_dict": {**make_state(), 3: torch.ones(1)}},
    "nested": {"state_dict": {"conv1": {"weight": torch.ones(64, 3, 7, 7)}}},
}


@pytest.mark.parametrize("content", NO_NETWORKS.values(), ids=NO_NETWORKS)
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    assert "there are no tensors in it under the usual names" in get_error(save(content, tmp_path / "x.pth"))


def test_a_file_with_cyclic_entries_is_read(tmp_path):
    content = make_state()
    content["state_dict"] = content
    content["list"] = [content]
    content["list"].append(content["list"])
    assert read_checkpoint(save(content, tmp_path / "x.pth")).coverage.percent == 100


STEM, BLOCK, SHORTCUT = "conv1.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"
WRONG = {
    "shape": (STEM, lambda w: w[:, :1], "is of shape [24, 1, 7, 7], in a narrow_resnet it is [24, 3, 7, 7]"),
    "transposed": (
        SHORTCUT,
        lambda w: w.transpose(0, 1),
        "is of shape [24, 48, 1, 1], in a narrow_resnet it is [48, 24",
    ),
    "scalar": (STEM, lambda w: w.sum(), "is of shape []"),
    "no elements": (STEM, lambda w: w[:0], "is of shape [0, 3, 7, 7]"),
    "int8": (BLOCK, lambda w: w.to(torch.int8), "holds int8 values, not floats"),
    "bool": (BLOCK, lambda w: w > 0.5, "holds bool values, not floats"),
    "complex": (BLOCK, lambda w: w.to(torch.complex64), "holds complex64 values, not floats"),
    "NaN": (BLOCK, lambda w: torch.where(w == w.max(), torch.nan, w), "has NaN or infinite values"),
    "infinite": ("layer4.0.bn2.running_var", lambda w: w / 0, "has NaN or infinite values"),
    "half too large": (BLOCK, lambda w: (w * 1e6).half(), "has NaN or infinite values"),
    "counter": ("bn1.num_batches_tracked", lambda w: torch.ones(3), "is of shape [3], in a narrow_resnet it is []"),
    "another norm": ("layer2.0.bn1.weight", lambda w: w[:16], "is of shape [16], in a narrow_resnet it is [48]"),
}


@pytest.mark.parametrize(("name", "change", "fault"), WRONG.values(), ids=WRONG)
def test_the_error_names_an_invalid_tensor(name, change, fault, tmp_path):
    tensors = make_state()
    sentence = get_error(save({**tensors, name: change(tensors[name])}, tmp_path / "x.pth"))
    assert f"{name} {fault}" in sentence
    assert sentence.endswith("; is it the right file, whole, and the right architecture?")


@pytest.mark.parametrize("dtype", ["c8", ">i4", "g", "S4", "U4", "O"])
def test_the_error_names_an_array_that_is_not_of_floats(dtype, tmp_path):
    arrays = to_arrays(make_state())
    arrays[BLOCK] = arrays[BLOCK].astype(dtype)
    assert BLOCK in get_error(save(arrays, tmp_path / "x.pkl", save_pickle))


MISSING = {
    "stage": ("layer4.", "narrow_resnet", "15 tensor(s) are missing: layer4.0.conv1.weight"),
    "block": ("layer3.1.", "resnet18", "10 tensor(s) are missing: layer3.1.conv1.weight"),
    "norm": ("layer3.0.bn2.", "narrow_resnet", "4 tensor(s) are missing: layer3.0.bn2.weight"),
    "shortcut": ("layer2.0.downsample.0.", "resnet18", "1 tensor(s) are missing: layer2.0.downsample.0.weight"),
}


@pytest.mark.parametrize(("start", "name", "fault"), MISSING.values(), ids=MISSING)
def test_the_error_names_missing_tensors(start, name, fault, tmp_path):
    assert fault in get_error(save(make_state_without(start, name), tmp_path / "x.pth"))


def test_num_batches_tracked_may_be_missing(tmp_path):
    tensors = {name: tensor for name, tensor in make_state().items() if tensor.dim()}
    assert len(read_checkpoint(save(tensors, tmp_path / "x.pth")).tensors) == 60


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("timm/resnet50_gn", "106 tensor(s) are missing: bn1.running_mean"),
        ("timm/resnet50d", "no ResNet is found in it; its tensors are conv1.0.weight, conv1.1.weight"),
        ("timm/seresnet50", "64 unexpected tensor(s): layer1.0.se.fc1.weight"),
        ("timm/vit_tiny_patch16_224", "no ResNet is found in it; its tensors are cls_token, pos_embed"),
    ],
)
def test_other_networks_are_refused(name, fault, tmp_path):
    assert fault in get_error(save(make_expanded_state(name), tmp_path / "x.pth"))


@pytest.mark.parametrize(("actual", "requested"), [("resnet50", "resnet18"), ("resnet18", "resnet50")])
def test_another_architecture_than_the_requested_one_is_refused(actual, requested, tmp_path):
    sentence = get_error(save(make_expanded_state(actual), tmp_path / "x.pth"), arch=requested)
    assert "layer1.0.conv1.weight is of shape [64, 64, " in sentence
    assert f"in a {requested} it is [64, 64, " in sentence
    assert sentence.count("; ") == 1


def test_the_error_names_an_unexpected_tensor_and_a_pattern_that_allows_it(tmp_path):
    path = save({**make_state(), "neck.0.weight": torch.ones(1), "neck.1.weight": torch.ones(1)}, tmp_path / "x.pth")
    assert "2 unexpected tensor(s): neck.0.weight, neck.1.weight;" in get_error(path)
    assert "--allow-unmatched 'neck.*'" in get_error(path)
    assert read_checkpoint(path, allow=["neck.*"]).coverage.unmatched == ("neck.0.weight", "neck.1.weight")


@pytest.mark.parametrize("prefix", ["net.encoder.", "a.b.c.d."])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_error_names_an_unknown_prefix_that_can_then_be_given(prefix, wrapper, tmp_path):
    tensors = {f"{wrapper}{prefix}{name}": tensor for name, tensor in make_state().items()}
    path = save({"state_dict": {**tensors, f"{wrapper}other": torch.ones(1)}}, tmp_path / "x.pth")
    assert get_error(path).endswith(f"its ResNet is under an unknown prefix; pass --prefix {prefix!r}")
    for spelled in (prefix, prefix.removesuffix("."), wrapper + prefix):
        assert read_checkpoint(path, prefix=spelled).coverage.percent == 100
    checkpoint = read_checkpoint(path, prefix=prefix)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in make_state().items())
    assert checkpoint.coverage.left_out == {"other": f"not under {prefix}"}


def test_a_wrong_prefix_is_refused(tmp_path):
    path = save({f"net.{name}": tensor for name, tensor in make_state().items()}, tmp_path / "x.pth")
    assert "ten.conv1.weight" in get_error(path, prefix="ten")


# ---------------------------------------------------------------- metadata


def make_own_file(metadata=None, **parts):
    known = {"version": 1, "arch": "narrow_resnet", "input": None, "stride_in_1x1": None, "method": None}
    return {
        "ssql_det": {**known, **metadata} if isinstance(metadata, dict) else known if metadata is None else metadata
    } | {
        "online": make_state(),
        **parts,
    }


def make_nested_list(depth):
    inner = []
    for _ in range(depth):
        inner = [inner]
    return inner


IMAGES = {"channels": "RGB", "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]}
INVALID_METADATA = {
    "version 2": {"version": 2},
    "no version": {"version": None},
    "another architecture": {"arch": "resnet18"},
    "no such architecture": {"arch": "resnet9000"},
    "architecture a list": {"arch": ["narrow_resnet"]},
    "input a list": {"input": [1]},
    "input a text": {"input": "RGB"},
    "channels": {"input": {**IMAGES, "channels": "RGBA"}},
    "channels a list": {"input": {**IMAGES, "channels": ["RGB"]}},
    "no mean": {"input": {"channels": "RGB", "std": [1, 1, 1]}},
    "mean of two": {"input": {**IMAGES, "mean": [1, 2]}},
    "mean a text": {"input": {**IMAGES, "mean": "123"}},
    "mean not a number": {"input": {**IMAGES, "mean": [float("nan"), 1, 1]}},
    "mean too large": {"input": {**IMAGES, "mean": [10**400, 1, 1]}},
    "std zero": {"input": {**IMAGES, "std": [0, 1, 1]}},
    "std infinite": {"input": {**IMAGES, "std": [float("inf"), 1, 1]}},
    "stride a text": {"stride_in_1x1": "yes"},
    "stride a number": {"stride_in_1x1": 2},
    "method a list": {"method": ["moco"]},
    "branch a number": {"branch": 1},
    "no such branch": {"branch": "ssql_det"},
    "terminal codes in the version": {"version": TERMINAL},
    "terminal codes in the architecture": {"arch": TERMINAL},
    "terminal codes in the method": {"method": [TERMINAL]},
    "long version": {"version": LONG},
    "long architecture": {"arch": LONG},
    "long method": {"method": [LONG]},
    "a list": [1],
    "a text": "version",
    "a number": 3,
}
INVALID_METADATA_IN_PICKLES = {
    "a tensor": torch.ones(3),
    "an array": np.ones(3),
    "version a tensor": {"version": torch.ones(2)},
    "version an array": {"version": np.ones(2)},
    "stride a tensor": {"stride_in_1x1": torch.ones(2)},
    "foreign": argparse.Namespace(version=1),
    "deep": {"method": make_nested_list(150)},
}


@pytest.mark.parametrize(
    "metadata",
    [*INVALID_METADATA.values(), *INVALID_METADATA_IN_PICKLES.values()],
    ids=[*INVALID_METADATA, *INVALID_METADATA_IN_PICKLES],
)
def test_an_ssql_det_file_with_invalid_metadata_is_refused(metadata, tmp_path):
    assert "its metadata is invalid" in get_error(save(make_own_file(metadata), tmp_path / "x.pth"))


@pytest.mark.parametrize("metadata", INVALID_METADATA.values(), ids=INVALID_METADATA)
def test_a_safetensors_file_with_invalid_metadata_is_refused(metadata, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(make_state(), path, {"ssql_det": json.dumps(make_own_file(metadata)["ssql_det"])})
    assert "its metadata is invalid" in get_error(path)


@pytest.mark.parametrize(
    "text", ["", "{nope", "null", "3", '{"version": 1' + "0" * 10_000 + "}", "[" * 100_000, "\x00"]
)
def test_a_safetensors_file_with_unparsable_metadata_is_refused(text, tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(make_state(), path, {"ssql_det": text})
    assert "its metadata is invalid" in get_error(path)


@pytest.mark.parametrize("online", [[1, 2], {}, "conv1.weight", torch.ones(3), {1: torch.ones(1)}, None])
def test_an_ssql_det_file_with_an_invalid_state_dict_is_refused(online, tmp_path):
    get_error(save(make_own_file(online=online), tmp_path / "x.pth"))


@pytest.mark.parametrize(
    "detector", [[1, 2], 3, "roi_heads", torch.ones(3), {1: torch.ones(1)}, {TERMINAL: torch.ones(1) / 0}]
)
def test_an_ssql_det_file_with_an_invalid_detector_is_refused(detector, tmp_path):
    get_error(save(make_own_file(detector=detector), tmp_path / "x.pth"))


def make_header(content, data=b""):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(content).to_bytes(8, "little") + content + data


def make_entry(**entry):
    return {"conv1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}}


HEADERS = {
    "JSON cut short": make_header(b'{"a": ', b"1234"),
    "control codes": make_header(b'{"a\n\x1b[31m": 3}', b"1234"),
    "not UTF-8": make_header(b'{"\xff": 3}', b"1234"),
    "nested": make_header(b'{"a":' * 5000, b"1234"),
    "not enough": make_header(make_entry(data_offsets=[0, 4]), b"123"),
    "too much": make_header(make_entry(), b"12345"),
    "outside": make_header(make_entry(data_offsets=[4, 8]), b"1234"),
    "backwards": make_header(make_entry(data_offsets=[4, 0]), b"1234"),
    "larger than its bytes": make_header(make_entry(shape=[10**12]), b"1234"),
    "larger than all numbers": make_header(make_entry(shape=[2**62, 2**62]), b"1234"),
    "negative": make_header(make_entry(shape=[-1]), b"1234"),
    "no such type": make_header(make_entry(dtype=TERMINAL), b"1234"),
    "a type of 6 bits": make_header(make_entry(dtype="F6_E2M3", shape=[16], data_offsets=[0, 12]), b"123456789012"),
    "metadata of numbers": make_header({"__metadata__": {"ssql_det": 3}}, b""),
    "a long type": make_header(make_entry(dtype=LONG), b"1234"),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_safetensors_file_with_an_invalid_header_is_refused(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert "is not a readable safetensors file" in get_error(path)


DETECTORS = {
    "std of one": {"pixel_mean": torch.ones(3, 1, 1), "pixel_std": torch.ones(1)},
    "mean of two": {"pixel_mean": torch.ones(2, 1, 1), "pixel_std": torch.ones(3)},
    "infinite head": {"roi_heads.x": torch.ones(3) / 0},
    "head of integers": {"roi_heads.x": torch.ones(3, dtype=torch.int8)},
    "head with a strange name": {f"roi_heads.{TERMINAL}": torch.ones(3) / 0},
}


@pytest.mark.parametrize("extra", DETECTORS.values(), ids=DETECTORS)
def test_a_detector_with_invalid_tensors_is_refused(extra, tmp_path):
    write_checkpoint(make_checkpoint(), tmp_path / "x.pth", "detectron2-fpn")
    content = torch.load(tmp_path / "x.pth")
    del content["ssql_det"]
    get_error(save({"model": {**content["model"], **extra}}, tmp_path / "x.pth"))


@pytest.mark.parametrize("blob", ["bbox_pred_w", "cls_score_b", "mask_fcn_logits_w"])
def test_a_caffe2_detector_with_invalid_blobs_is_refused(blob, tmp_path):
    blobs = {
        "conv1_w": np.ones((64, 3, 7, 7), "f4"),
        "res_conv1_bn_s": np.ones(64, "f4"),
        blob: np.array(np.float32(1)),
    }
    get_error(save({"blobs": blobs}, tmp_path / "x.pkl", save_pickle))


# ---------------------------------------------------------------- names

STRANGE_NAMES = {"long": LONG, "terminal codes": TERMINAL, "quotes": "'\"`$(reboot)", "pattern": "[a-z]*?"}


@pytest.mark.parametrize("strange", STRANGE_NAMES.values(), ids=STRANGE_NAMES)
def test_the_error_for_a_strange_name_is_one_short_line(strange, tmp_path):
    get_error(save({strange: torch.ones(1)}, tmp_path / "x.pth"))
    get_error(save({**make_state(), strange: torch.ones(1)}, tmp_path / "x.pth"))
    get_error(save({f"{strange}.{name}": tensor for name, tensor in make_state().items()}, tmp_path / "x.pth"))
    get_error(save(make_own_file(detector={strange: torch.ones(1) / 0}), tmp_path / "x.pth"))


@pytest.mark.parametrize(
    "content",
    [
        {**make_expanded_state("resnet152"), **dict.fromkeys((f"extra.{index}" for index in range(40_000)), ONE)},
        dict.fromkeys((f"module.extra.{index}" for index in range(40_000)), ONE),
        {f"backbone.{index}.{'a' * 50}": index for index in range(40_000)},
        {"module." * 15_000 + "x": torch.ones(1)},
        {"_orig_mod.module." * 6_000 + "conv1.weight": ONE},
        {"*" * 30_000 + "encoder" * 10_000: torch.ones(1), **make_state()},
    ],
    ids=["extra", "wrapped", "not tensors", "wrapped often", "wrapped often in turn", "stars"],
)
def test_many_or_long_names_are_refused_quickly(content, tmp_path):
    path = save(content, tmp_path / "x.pth")
    start = time.process_time()
    get_error(path)
    assert time.process_time() - start < 6  # quadratic would be minutes; a busy core counts twice


# ---------------------------------------------------------------- bombs: small files that claim to be large

ZEROS = 128 << 20
ALLOWED = 64 << 20
READ_WITH_LITTLE_MEMORY = """
import json, resource, sys, time
from ssql_det.convert import read_checkpoint
from ssql_det.core.errors import UserError

def size(of):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(of)) * 1024

limit = size("VmSize") + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, start = size("VmRSS"), time.process_time()
    try:
        read_checkpoint(path)
        outcome = ["read", ""]
    except UserError as error:
        outcome = ["refused", str(error)]
    except BaseException as failure:
        outcome = ["crashed", repr(failure)]
    print(json.dumps([*outcome, time.process_time() - start, size("VmHWM") - before]), flush=True)
"""


def write_zip(content, path, records, change=None, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    write_claims(content, buffer)
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as file:
        file.writestr("x/data.pkl", buffer.getvalue())
        for name, record in records.items():
            file.writestr(f"x/data/{name}", record)
            if change is not None:
                change(file.getinfo(f"x/data/{name}"))


def compressed_storage(path):
    write_zip(
        {"conv1.weight": ClaimedTensor(ClaimedStorage(ZEROS // 4))},
        path,
        {"0": bytes(ZEROS)},
        None,
        zipfile.ZIP_DEFLATED,
    )


def compressed_pickle(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("x/data.pkl", b"}." + bytes(ZEROS))


def compressed_byteorder(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("x/data.pkl", b"}.")
        file.writestr("x/byteorder", bytes(ZEROS))


def claimed_storage(path):
    write_zip({"conv1.weight": ClaimedTensor(ClaimedStorage(10**12))}, path, {"0": b"1234"})


def claimed_storage_and_record(path):
    def claim(info):
        info.file_size = info.compress_size = 4 * 10**12

    write_zip({"conv1.weight": ClaimedTensor(ClaimedStorage(10**12))}, path, {"0": b"1234"}, claim)


def legacy_claimed_storage(path):
    buffer = io.BytesIO()
    write_claims({"conv1.weight": ClaimedTensor(ClaimedStorage(10**12))}, buffer, None)
    path.write_bytes(make_legacy_file(buffer.getvalue(), ["0"]) + (10**12).to_bytes(8, "little") + b"1234")


def legacy_missing_storages(path):
    buffer = io.BytesIO()
    write_claims([ClaimedTensor(ClaimedStorage(10**8, str(key))) for key in range(1000)], buffer, None)
    path.write_bytes(make_legacy_file(buffer.getvalue(), []))


def overlapping_records(path):
    kernel, keys = bytes(2 << 20), [f"{key:07}" for key in range(300)]
    header_size = len(b"x/data/0000000") + 30
    sizes = [len(kernel) + header_size * back for back in range(len(keys) - 1, -1, -1)]
    buffer = io.BytesIO()
    storages = [ClaimedStorage(size // 4, key) for size, key in zip(sizes, keys, strict=True)]
    write_claims([ClaimedTensor(storage) for storage in storages], buffer)
    path.write_bytes(make_overlapping_zip(buffer.getvalue(), keys, kernel))


def one_record_as_many_storages(path):
    record = bytes(2 << 20)
    storages = [ClaimedStorage(len(record) // 4, "0", f"cuda:{place}") for place in range(300)]
    write_zip([ClaimedTensor(storage) for storage in storages], path, {"0": record})


def push_call(function, *arguments):
    class Call:
        def __reduce__(self):
            return function, arguments

    return Call()


def write_expanded(*names):
    """Tensors with one stored value and 10**12 elements."""

    def make(path):
        write_checkpoint(make_checkpoint(), path, "detectron2-fpn")
        content = torch.load(path)
        content["model"] |= {name: torch.ones(()).expand(10**6, 10**6) for name in names}
        del content["ssql_det"]
        torch.save(content, path)

    return make


BOMBS = {
    "compressed storage": compressed_storage,
    "compressed pickle": compressed_pickle,
    "compressed byteorder": compressed_byteorder,
    "storage of claimed size": claimed_storage,
    "storage and record of claimed size": claimed_storage_and_record,
    "legacy storage of claimed size": legacy_claimed_storage,
    "legacy storages never filled": legacy_missing_storages,
    "overlapping records": overlapping_records,
    "one record as many storages": one_record_as_many_storages,
    "bytes by the count": lambda path: save_pickle({"x": push_call(bytearray, 10**9)}, path),
    "range as a list": lambda path: save_pickle({"x": push_call(list, range(10**9))}, path),
    "range as a set": lambda path: save_pickle({"x": push_call(set, range(10**9))}, path),
    "range as a size": lambda path: save_pickle({"x": push_call(torch.Size, range(10**9))}, path),
    "long bytes announced": lambda path: path.write_bytes(b"\x80\x04\x8e" + (1 << 29).to_bytes(8, "little") + b"x"),
    "spread detector": write_expanded("roi_heads.x"),
    "spread mean": write_expanded("pixel_mean", "pixel_std"),
    "spread stem": lambda path: torch.save({"conv1.weight": torch.ones(()).expand(10**6, 10**6)}, path),
    "safetensors": lambda path: path.write_bytes(
        make_header(make_entry(shape=[10**12], data_offsets=[0, 4 * 10**12]), b"1234")
    ),
    "safetensors header": lambda path: path.write_bytes((10**12).to_bytes(8, "little") + b"{" + b" " * 100),
}


@pytest.fixture(scope="module")
def outcomes_by_bomb(tmp_path_factory):
    """The outcome of reading each bomb, in a process with limited memory."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [folder / f"{index}.pth" for index in range(len(BOMBS))]
    for path, make in zip(paths, BOMBS.values(), strict=True):
        make(path)
    done = subprocess.run(
        [sys.executable, "-c", READ_WITH_LITTLE_MEMORY, *map(str, paths)], capture_output=True, text=True, check=False
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(BOMBS), done.stderr
    for path in paths:
        path.unlink()
    return dict(zip(BOMBS, zip(paths, outcomes, strict=True), strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_with_little_time_and_memory(name, outcomes_by_bomb):
    path, (outcome, sentence, seconds, memory) = outcomes_by_bomb[name]
    assert outcome == "refused", sentence
    assert str(path) in sentence
    assert sentence.isprintable()
    assert len(sentence) < 1000
    assert memory < ALLOWED, f"it took {memory >> 20} MiB"
    assert seconds < 2
    assert "memory" not in sentence.lower(), "it was the machine's limit that stopped it"


# ---------------------------------------------------------------- options and outputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "torchvison"}, "there is no format 'torchvison'; did you mean 'torchvision'? (known: "),
        ({"arch": "resnet81"}, "there is no architecture 'resnet81'; did you mean 'resnet18'? (known: "),
        ({"branch": "momentum"}, "x.pth: this torchvision file has no branch 'momentum', only online"),
        ({"branch": "ema", "format": "torchvision"}, "x.pth: this torchvision file has no branch 'ema', only online"),
        ({"format": "detectron2"}, "it is not in the format detectron2 (stem.conv1.weight is not in it)"),
    ],
)
def test_an_invalid_option_is_refused(options, message, tmp_path):
    path = save(make_state(), tmp_path / "x.pth")
    with pytest.raises(UserError) as error:
        read_checkpoint(path, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_error_for_an_unknown_branch_names_the_known_ones(tmp_path):
    both = {f"encoder_{branch}.{name}": tensor for branch in "qk" for name, tensor in make_state().items()}
    path = save({"state_dict": both}, tmp_path / "x.pth")
    assert "this moco file has no branch 'teacher', only online, momentum" in get_error(path, branch="teacher")


@pytest.fixture
def existing_output(tmp_path):
    path = tmp_path / "out.pth"
    path.write_bytes(b"precious")
    return path


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("out.pth", "ssql_det", "exists already; choose another name, or pass --force to replace it"),
        ("x.pkl", "ssql_det", "a file of format ssql_det ends in .pth; got "),
        ("x.pth", "detectron2", "a file of format detectron2 ends in .pkl; got "),
        ("x", "torchvision", "a file of format torchvision ends in .pth or .pt; got "),
        ("x.pth", "torchvison", "cannot write 'torchvison'; did you mean 'torchvision'? (can write: ssql_det, "),
        ("x.pth", "moco", "cannot write 'moco'"),
        ("x.pth", "", "cannot write ''"),
    ],
)
def test_an_invalid_output_is_refused_and_nothing_is_written(name, format, message, existing_output):
    for refused in (check_output, lambda path, format: write_checkpoint(make_checkpoint(), path, format)):
        with pytest.raises(UserError) as error:
            refused(existing_output.parent / name, format)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    assert os.listdir(existing_output.parent) == ["out.pth"]
    assert existing_output.read_bytes() == b"precious"


def test_an_output_is_replaced_on_request(existing_output):
    write_checkpoint(make_checkpoint(), existing_output, "ssql_det", replace=True)
    assert read_checkpoint(existing_output).coverage.percent == 100
    assert os.listdir(existing_output.parent) == ["out.pth"]


@pytest.mark.parametrize(
    ("checkpoint", "format", "message"),
    [
        (lambda: make_checkpoint("cifar_resnet18"), "detectron2-fpn", "stem of stride 1"),
        (
            lambda: make_checkpoint("resnet50", images=MSRA, stride_in_1x1=True),
            "torchvision",
            "has its strides in the 1x1 convs",
        ),
        (lambda: make_checkpoint("resnet50", stride_in_1x1=None), "timm", "the 1x1 or the 3x3 convs; .*--trained-with"),
        (lambda: make_checkpoint(images=None), "torchvision", "RGB or BGR images; .*--trained-with"),
    ],
)
def test_a_checkpoint_that_a_format_cannot_store_leaves_the_old_output(checkpoint, format, message, existing_output):
    target = existing_output.rename(existing_output.with_suffix(".bin")) if format == "timm" else existing_output
    with pytest.raises(UserError, match=message) as error:
        write_checkpoint(checkpoint(), target, format, replace=True)
    assert "\n" not in str(error.value)
    assert os.listdir(target.parent) == [target.name]
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("head", "other"), [("backbone.fpn_output2.bias", "detectron2-c4"), ("roi_heads.x", "detectron2-fpn")]
)
def test_a_detector_cannot_be_converted_into_another(head, other, tmp_path):
    checkpoint = make_checkpoint()
    checkpoint.detector[head] = torch.ones(1)
    with pytest.raises(UserError, match="and cannot become"):
        write_checkpoint(checkpoint, tmp_path / "x.pth", other)
    assert os.listdir(tmp_path) == []


def test_a_folder_at_the_output_path_is_refused(tmp_path):
    (tmp_path / "x.pth").mkdir()
    for replace in (False, True):
        with pytest.raises(UserError, match=r"x\.pth"):
            write_checkpoint(make_checkpoint(), tmp_path / "x.pth", "ssql_det", replace=replace)
    assert os.listdir(tmp_path) == ["x.pth"]


@pytest.mark.parametrize("name", ["a/data.pkl", "b/c/data.pkl"])
def test_the_folder_in_an_archive_may_have_any_name(name, tmp_path):
    (tmp_path / "x.pth").write_bytes(make_zip({name: pickle.dumps(to_arrays(make_state()))}))
    assert read_checkpoint(tmp_path / "x.pth").coverage.percent == 100
