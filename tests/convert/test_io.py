"""Unit tests of reading and writing: coverage, layouts, tensors, files and metadata."""

import hashlib
import json
import os
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.convert.crafted_checkpoints import make_checkpoint, make_state, save_pickle, to_arrays
from torch import nn

from ssql_det.convert import (
    CIFAR,
    IMAGENET,
    MSRA,
    Coverage,
    InputFormat,
    Metadata,
    get_architecture,
    get_config_overrides,
    get_writers,
    inspect_checkpoint,
    read_checkpoint,
    with_known_input,
    write_checkpoint,
)
from ssql_det.convert.checkpoint import find_invalid_values
from ssql_det.convert.format import (
    TORCHVISION_NAMES,
    Layout,
    Names,
    as_tensor,
    compact,
    find_architecture,
    get_state_dict,
    match_architecture,
    rename_tensors,
    torchvision_name,
)
from ssql_det.convert.formats.detectron2 import _to_array
from ssql_det.core.errors import UserError

pytestmark = pytest.mark.slow

FORMATS = {
    "ssql_det": "x.pth",
    "detectron2-fpn": "x.pth",
    "detectron2-c4": "x.pth",
    "detectron2": "x.pkl",
    "safetensors": "x.safetensors",
    "torchvision": "x.pth",
    "timm": "x.bin",
}
WITH_METADATA = ["ssql_det", "detectron2-fpn", "detectron2-c4", "detectron2", "safetensors"]
each_format = pytest.mark.parametrize("format", FORMATS)

# ---------------------------------------------------------------- coverage


def get_error(coverage, allow=()):
    with pytest.raises(UserError) as error:
        coverage.check("x.pth", allow)
    return str(error.value)


def test_a_complete_coverage_passes():
    Coverage(("a",), {"fc.weight": "a classifier"}).check("x.pth")
    Coverage().check("x.pth")


def test_the_error_is_about_invalid_tensors_first_then_missing_ones():
    everything = Coverage(("a",), {}, ("extra",), ("gone",), {"bad": "is of shape [1], in a resnet18 it is [2]"})
    assert get_error(everything) == (
        "x.pth: bad is of shape [1], in a resnet18 it is [2]; is it the right file, whole, and the right architecture?"
    )
    assert get_error(Coverage(("a",), {}, ("extra",), ("gone",))) == (
        "x.pth: 1 tensor(s) are missing: gone; get the whole file"
    )


def test_the_error_has_three_names_and_counts_the_rest():
    assert get_error(Coverage(missing=tuple("abc"))) == "x.pth: 3 tensor(s) are missing: a, b, c; get the whole file"
    assert "5 tensor(s) are missing: a, b, c and 2 more;" in get_error(Coverage(missing=tuple("abcde")))


@pytest.mark.parametrize(
    ("unmatched", "pattern"),
    [(["neck.a", "neck.b"], "neck.*"), (["neck.a.weight"], "neck.a.weight"), (["neck.a", "other.b"], "neck.a")],
)
def test_the_error_for_unexpected_tensors_suggests_a_pattern(unmatched, pattern):
    coverage = Coverage(("a",), {}, tuple(unmatched))
    assert get_error(coverage) == (
        f"x.pth: {len(unmatched)} unexpected tensor(s): {', '.join(unmatched)}; "
        f"to leave them out, pass --allow-unmatched '{pattern}'"
    )
    if "other.b" not in unmatched:
        coverage.check("x.pth", [pattern])


def test_allowed_names_are_not_in_the_error():
    coverage = Coverage(("a",), {}, ("neck.a", "head.b", "neck.c"))
    assert "1 unexpected tensor(s): head.b;" in get_error(coverage, ["neck.*"])
    assert "3 unexpected tensor(s)" in get_error(coverage, ["nec", "*.d"])
    coverage.check("x.pth", ["neck.*", "*.b"])
    coverage.check("x.pth", ["*"])


@pytest.mark.parametrize("fault", [{"missing": ("a",)}, {"invalid": {"a": "is of shape [1]"}}])
def test_missing_and_invalid_tensors_cannot_be_allowed(fault):
    get_error(Coverage(("b",), **fault), ["*"])


@pytest.mark.parametrize(
    ("coverage", "percent"),
    [
        (Coverage(), 0),
        (Coverage(("a",)), 100),
        (Coverage(("a", "b", "c"), missing=("d",)), 75),
        (Coverage(("a",), invalid={"b": "", "c": "", "d": ""}), 25),
        (Coverage(("a",), {"x": "left"}, ("y",), ("b",), {"c": "", "d": ""}), 25),
        (Coverage(missing=("a",)), 0),
    ],
)
def test_the_percentage_is_of_the_backbone_alone(coverage, percent):
    assert coverage.percent == percent


def test_a_coverage_can_be_stored_as_json(tmp_path):
    torch.save({**make_state(), "fc.weight": torch.ones(1), "neck.x": torch.ones(1)}, tmp_path / "x.pth")
    plain = json.loads(json.dumps(inspect_checkpoint(tmp_path / "x.pth").coverage.to_dict()))
    assert plain["percent"] == 100
    assert plain["used"] == list(make_state())
    assert plain["left_out"] == {"fc.weight": "a classifier"}
    assert plain["unmatched"] == ["neck.x"]
    assert (plain["missing"], plain["wrong"]) == ([], {})


def test_inspect_checkpoint_reports_what_read_checkpoint_refuses(tmp_path):
    tensors = make_state()
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :2]
    tensors["bn1.weight"] = tensors["bn1.weight"] / 0
    del tensors["layer1.0.conv2.weight"]
    torch.save(tensors, tmp_path / "x.pth")
    coverage = inspect_checkpoint(tmp_path / "x.pth").coverage
    assert coverage.missing == ("layer1.0.conv2.weight",)
    assert coverage.invalid.keys() == {"conv1.weight", "bn1.weight"}
    assert coverage.percent == pytest.approx(100 * 69 / 72)


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("content", "container", "expected"),
    [
        ({"a": 1}, "", {"a": 1}),
        ({"model": {"a": 1}}, "model", {"a": 1}),
        ({"model": {"a": 1}}, "state_dict", None),
        ({"a": {"b": {"c": 1}}}, "a/b", {"c": 1}),
        ({"a": {"b": [1]}}, "a/b", None),
        ({"a": 3}, "a/b", None),
        ({"module.a": 1, "module.b.c": 2}, "", {"a": 1, "b.c": 2}),
        ({"_orig_mod.module.a": 1}, "", {"a": 1}),
        ({"module._orig_mod.a": 1}, "", {"a": 1}),
        ({"module.a": 1, "b": 2}, "", {"module.a": 1, "b": 2}),
        ({"a.module.b": 1}, "", {"a.module.b": 1}),
        ({"x": {"module.a": 1}}, "x", {"a": 1}),
        ({}, "", None),
        ({"x": {}}, "x", None),
        ({1: 2}, "", None),
        ({"a": 1, 2: 3}, "", None),
        ([1], "", None),
        (None, "", None),
        ("text", "text", None),
    ],
)
def test_the_state_dict_is_found_without_wrappers_prefixes(content, container, expected):
    before = repr(content)
    assert get_state_dict(content, container) == expected
    assert repr(content) == before


def test_required_keys_may_be_in_the_state_dict_or_in_the_file():
    layout = Layout("backbone.", required_keys=("head.*", "epoch"))
    assert layout.stem_key == "backbone.conv1.weight"
    assert layout.matches({"backbone.conv1.weight": 1, "head.x": 1}, {"epoch": 3})
    assert layout.matches({"backbone.conv1.weight": 1, "head.x": 1, "epoch": 1}, {})
    assert not layout.matches({"backbone.conv1.weight": 1, "head.x": 1}, {})
    assert not layout.matches({"backbone.conv1.weight": 1}, {"epoch": 3})
    assert not layout.matches({"backbone.conv1.bias": 1, "head.x": 1}, {"epoch": 3})
    assert not layout.matches({"backbone.conv1.weight": 1}, {3: "head.x"})


def test_tensors_are_matched_missing_or_mismatched():
    shapes = {name: tuple(tensor.shape) for name, tensor in make_state("resnet18").items()}
    whole = match_architecture(get_architecture("resnet18"), Layout(), shapes)
    assert set(whole.matched.values()) == set(shapes)
    assert (whole.missing, whole.mismatched) == ((), {})
    del shapes["bn1.bias"], shapes["bn1.num_batches_tracked"]
    shapes["layer1.0.conv1.weight"] = (64, 64, 1, 1)
    partly = match_architecture(get_architecture("resnet18"), Layout(), {**shapes, "other": (1,)})
    assert partly.missing == ("bn1.bias",)
    assert partly.mismatched == {
        "layer1.0.conv1.weight": "is of shape [64, 64, 1, 1], in a resnet18 it is [64, 64, 3, 3]"
    }
    assert len(partly.matched) == 117


@pytest.mark.parametrize("name", ["resnet34", "wide_resnet50_2", "resnext50_32x4d", "cifar_resnet18", "narrow_resnet"])
def test_the_architecture_is_found_with_a_tensor_missing(name):
    shapes = {torchvision_name(spec): spec.shape for spec in get_architecture(name).tensors}
    del shapes["layer3.0.conv2.weight"]
    best = find_architecture(Layout(), shapes)
    assert best.architecture.name == name
    assert best.missing == ("layer3.0.conv2.weight",)


def test_the_last_stage_may_have_another_prefix_and_unnamed_tensors_are_dropped():
    names = Names(norm_suffixes={"weight": ".scale"})
    layout = Layout("a.", names, last_stage_prefix="")
    named = rename_tensors(make_state("resnet18"), get_architecture("resnet18"), layout)
    assert {name.split(".")[0] for name in named} == {"a", "layer4"}
    assert "a.bn1.scale" in named
    assert not any(name.endswith(("bias", "running_var", "num_batches_tracked")) for name in named)
    assert torch.equal(named["layer4.1.conv2.weight"], make_state("resnet18")["layer4.1.conv2.weight"])
    assert set(rename_tensors({"conv1.weight": torch.ones(1)}, get_architecture("resnet18"), layout)) == {
        "a.conv1.weight"
    }


def test_torchvision_names_are_those_of_the_network():
    assert [torchvision_name(spec) for spec in get_architecture("resnet50").tensors] == [
        TORCHVISION_NAMES.get_name(spec) for spec in get_architecture("resnet50").tensors
    ]
    assert {torchvision_name(spec): spec.shape for spec in get_architecture("resnet50").tensors} == {
        name: tuple(tensor.shape) for name, tensor in make_state("resnet50").items()
    }


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize("code", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2", ">i8", "u1", "?"])
def test_arrays_of_numbers_become_tensors_in_any_byte_order(code):
    array = np.arange(6).reshape(2, 3).astype(code)
    tensor = as_tensor(array)
    assert tensor.tolist() == array.tolist()
    assert tensor.dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([None]), np.ones(2, "c8"), [1.0], 1.0, "a", None, {}])
def test_other_values_are_not_tensors(value):
    assert as_tensor(value) is None


def test_as_tensor_shares_memory_and_detaches():
    array, parameter = np.zeros(3, "f4"), nn.Parameter(torch.zeros(3))
    as_tensor(array)[0] = 1
    as_tensor(parameter)[0] = 1
    assert array[0] == parameter[0] == 1
    assert not as_tensor(parameter).requires_grad
    assert type(as_tensor(parameter)) is torch.Tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(4, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.rand(3, 4).t(),
        torch.rand(1000)[10:14],
        torch.rand(()).expand(3, 4),
        torch.rand(8)[::2],
        torch.rand(3, 4),
        torch.tensor(3),
        torch.rand(5)[:0],
    ],
)
def test_a_compact_tensor_is_contiguous_in_a_storage_of_its_own_size(tensor):
    single = compact(tensor)
    assert torch.equal(single, tensor)
    assert single.is_contiguous()
    assert single.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_a_compact_tensor_is_not_copied():
    tensor = torch.rand(3)
    assert compact(tensor).data_ptr() == tensor.data_ptr()


def test_invalid_values_and_types_are_found():
    tensors = {
        **{str(dtype): torch.ones(2, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        "empty": torch.ones(0),
        "int64": torch.ones(2, dtype=torch.int64),
        "nan": torch.tensor([1, float("nan")]),
        "inf": torch.tensor([1, float("-inf")]),
    }
    assert find_invalid_values(tensors.items()) == {
        "int64": "holds int64 values, not floats",
        "nan": "has NaN or infinite values",
        "inf": "has NaN or infinite values",
    }


def test_a_bfloat16_tensor_becomes_a_float32_array():
    tensor = torch.tensor([1.5, -3e38, 1e-40]).to(torch.bfloat16)
    assert _to_array(tensor).dtype == np.float32
    assert _to_array(tensor).tolist() == tensor.tolist()
    assert _to_array(torch.ones(2, dtype=torch.float16)).dtype == np.float16


# ---------------------------------------------------------------- files


def test_all_formats_that_can_be_written_are_tested_here():
    assert set(FORMATS) == set(get_writers())


@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_values_and_types_survive_a_round_trip(format, dtype, tmp_path):
    checkpoint = make_checkpoint()
    for name, tensor in checkpoint.tensors.items():
        checkpoint.tensors[name] = tensor.to(dtype) if tensor.dim() else tensor
    write_checkpoint(checkpoint, tmp_path / FORMATS[format], format)
    back = read_checkpoint(tmp_path / FORMATS[format])
    assert back.architecture == checkpoint.architecture
    for name, tensor in back.tensors.items():
        assert tensor.dtype == checkpoint.tensors[name].dtype
        assert torch.equal(tensor, checkpoint.tensors[name])
    assert checkpoint.tensors.keys() - back.tensors.keys() == {
        name for name in checkpoint.tensors if name.endswith("num_batches_tracked") and format.startswith("detectron2")
    }


@each_format
def test_tensors_left_behind_are_reported(format, tmp_path):
    left_behind = write_checkpoint(make_checkpoint(), tmp_path / FORMATS[format], format)
    counters = {name for name in make_state() if name.endswith("num_batches_tracked")}
    assert set(left_behind) == (counters if format.startswith("detectron2") else set())
    assert all("FrozenBatchNorm2d has no such buffer" in why for why in left_behind.values())


@each_format
def test_a_view_is_saved_without_the_rest_of_its_storage(format, tmp_path):
    whole = torch.rand(4_000_000)
    tensors = make_state()
    size = tensors["conv1.weight"].numel()
    tensors["conv1.weight"] = whole[7 : 7 + size].view(24, 3, 7, 7)
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].to(memory_format=torch.channels_last)
    torch.save(tensors, tmp_path / "in.pth")
    assert (tmp_path / "in.pth").stat().st_size > 16_000_000
    write_checkpoint(read_checkpoint(tmp_path / "in.pth"), tmp_path / FORMATS[format], format)
    bytes_of_tensors = sum(tensor.nbytes for tensor in make_state().values())
    assert (tmp_path / FORMATS[format]).stat().st_size < bytes_of_tensors + 40_000
    back = read_checkpoint(tmp_path / FORMATS[format]).tensors
    assert torch.equal(back["conv1.weight"], whole[7 : 7 + size].view(24, 3, 7, 7))
    assert torch.equal(back["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])


@pytest.mark.parametrize("format", ["ssql_det", "detectron2-fpn"])
def test_a_detectors_view_is_saved_without_the_rest_of_its_storage(format, tmp_path):
    write_checkpoint(make_checkpoint(), tmp_path / "in.pth", "detectron2-fpn")
    content = torch.load(tmp_path / "in.pth")
    whole = torch.rand(4_000_000)
    content["model"]["backbone.fpn_output2.weight"] = whole[:8].view(2, 4).t()
    torch.save(content, tmp_path / "in.pth")
    write_checkpoint(read_checkpoint(tmp_path / "in.pth"), tmp_path / "out.pth", format)
    assert torch.equal(
        read_checkpoint(tmp_path / "out.pth").detector["backbone.fpn_output2.weight"], whole[:8].view(2, 4).t()
    )
    assert (tmp_path / "out.pth").stat().st_size < 4_000_000


WRITE_ALL = """
import sys
from ssql_det.convert import read_checkpoint, write_checkpoint
for each in sys.argv[1:]:
    format, name = each.split()
    write_checkpoint(read_checkpoint("in.pth"), f"elsewhere-{format}-{name}", format)
"""


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    """Written repeatedly, and in a process with another hash seed."""
    write_checkpoint(make_checkpoint(method="moco"), tmp_path / "in.pth", "ssql_det")
    for time in range(3):
        checkpoint = read_checkpoint(tmp_path / "in.pth")
        for format, name in FORMATS.items():
            write_checkpoint(checkpoint, tmp_path / f"{time}-{format}-{name}", format)
    outputs = [f"{format} {name}" for format, name in FORMATS.items()]
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", WRITE_ALL, *outputs], cwd=tmp_path, env=environment, check=True)
    for format, name in FORMATS.items():
        hashes = {
            hashlib.sha256((tmp_path / f"{time}-{format}-{name}").read_bytes()).hexdigest()
            for time in (*range(3), "elsewhere")
        }
        assert len(hashes) == 1, format


def test_a_pkl_can_be_read_with_old_versions_of_python_and_numpy(tmp_path):
    path = tmp_path / "x.pkl"
    write_checkpoint(make_checkpoint(), path, "detectron2")
    content = path.read_bytes()
    assert b"numpy.core.multiarray" in content
    assert b"numpy._core" not in content
    names = {argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert {opcode.proto for opcode, _, _ in pickletools.genops(content)} <= {0, 1, 2, 3}


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_a_pkl_is_read_by_plain_pickle_as_detectron2_does(tmp_path):
    path = tmp_path / "x.pkl"
    write_checkpoint(make_checkpoint(), path, "detectron2")
    with open(path, "rb") as file:
        content = pickle.load(file, encoding="latin1")
    assert content["__author__"] == "ssql_det"
    assert content["matching_heuristics"] is True
    assert content["ssql_det"]["arch"] == "narrow_resnet"
    assert type(content["model"]["stem.conv1.weight"]) is np.ndarray
    assert np.array_equal(
        content["model"]["res5.0.shortcut.weight"], make_state()["layer4.0.downsample.0.weight"].numpy()
    )


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_read_without_a_warning(tmp_path):
    save_pickle(to_arrays(make_state()), tmp_path / "x.pkl", protocol=5)
    assert all(
        torch.equal(tensor, make_state()[name]) for name, tensor in read_checkpoint(tmp_path / "x.pkl").tensors.items()
    )


def test_big_endian_arrays_are_read(tmp_path):
    save_pickle(
        {name: array.astype(array.dtype.newbyteorder(">")) for name, array in to_arrays(make_state()).items()},
        tmp_path / "x",
    )
    assert all(
        torch.equal(tensor, make_state()[name]) for name, tensor in read_checkpoint(tmp_path / "x").tensors.items()
    )


def test_a_checkpoint_has_name_and_hash_of_its_file(tmp_path):
    torch.save(make_state(), tmp_path / "x.pth")
    source = read_checkpoint(tmp_path / "x.pth").source
    assert source.name == "x.pth"
    assert source.sha256 == hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
    assert source.format == "torchvision"


# ---------------------------------------------------------------- metadata

METADATA = {
    "all": {"method": "ssql-byol", "images": CIFAR, "branch": "online"},
    "momentum": {"method": "moco", "images": IMAGENET, "branch": "momentum"},
    "nothing": {"method": None, "images": IMAGENET, "branch": "online"},
}


@pytest.mark.parametrize("format", WITH_METADATA)
@pytest.mark.parametrize("known", METADATA.values(), ids=METADATA)
def test_metadata_survives_a_round_trip(known, format, tmp_path):
    checkpoint = make_checkpoint(**known)
    write_checkpoint(checkpoint, tmp_path / FORMATS[format], format)
    assert read_checkpoint(tmp_path / FORMATS[format]).metadata == checkpoint.metadata


@pytest.mark.parametrize("format", ["ssql_det", "detectron2-fpn", "detectron2-c4", "detectron2"])
@pytest.mark.parametrize("stride", [True, False, None])
@pytest.mark.parametrize("images", [MSRA, None])
def test_stride_and_bgr_input_and_unknown_fields_survive_a_round_trip(images, stride, format, tmp_path):
    checkpoint = make_checkpoint(images=images, stride_in_1x1=stride)
    write_checkpoint(checkpoint, tmp_path / FORMATS[format], format)
    assert read_checkpoint(tmp_path / FORMATS[format]).metadata == checkpoint.metadata


@pytest.mark.parametrize("format", ["safetensors", "torchvision", "timm"])
def test_bgr_filters_and_their_input_format_are_flipped(format, tmp_path):
    left_behind = write_checkpoint(make_checkpoint(images=MSRA), tmp_path / FORMATS[format], format)
    back = read_checkpoint(tmp_path / FORMATS[format])
    assert torch.equal(back.tensors["conv1.weight"], make_state()["conv1.weight"][:, [2, 1, 0]])
    assert torch.equal(back.tensors["bn1.weight"], make_state()["bn1.weight"])
    if format == "safetensors":
        assert back.metadata.input == InputFormat("RGB", (123.675, 116.28, 103.53), (1.0, 1.0, 1.0))
        assert left_behind == {}
    else:
        assert back.metadata.input == IMAGENET
        assert left_behind == {
            "input": "the format does not store mean [123.675, 116.28, 103.53] and std [1.0, 1.0, 1.0]"
        }


def read_stored_metadata(path):
    if path.suffix == ".safetensors":
        content = path.read_bytes()
        text = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return json.loads(json.loads(text)["__metadata__"]["ssql_det"])
    if path.suffix == ".pkl":
        return pickle.loads(path.read_bytes(), encoding="latin1")["ssql_det"]
    return torch.load(path, weights_only=True)["ssql_det"]


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("format", WITH_METADATA)
def test_a_file_stores_the_file_that_it_was_converted_from(format, tmp_path):
    torch.save(
        {"state_dict": {f"encoder_q.{name}": tensor for name, tensor in make_state().items()}}, tmp_path / "in.tar"
    )
    path = tmp_path / FORMATS[format]
    write_checkpoint(read_checkpoint(tmp_path / "in.tar"), path, format)
    description = read_stored_metadata(path)
    sha256 = hashlib.sha256((tmp_path / "in.tar").read_bytes()).hexdigest()
    assert description["source"] == {"name": "in.tar", "sha256": sha256, "format": "moco"}
    assert description["version"] == 1
    assert description["arch"] == "narrow_resnet"
    assert read_checkpoint(path).source.format == format


def test_metadata_survives_json():
    for metadata in (Metadata(), Metadata(CIFAR, True, "byol", "momentum"), Metadata(MSRA, False)):
        confirmed = with_known_input(metadata, metadata.input, metadata.stride_in_1x1)
        for each in (metadata, confirmed):  # an assumption stays one
            assert Metadata.from_dict(json.loads(json.dumps(each.to_dict()))) == each


VALID_FIELDS = {
    "input": {"channels": "RGB", "mean": [1, 2, 3], "std": [1, 1, 1]},
    "stride_in_1x1": True,
    "method": "moco",
}


def test_valid_metadata_is_parsed():
    assert Metadata.from_dict(VALID_FIELDS) == Metadata(
        InputFormat("RGB", (1.0, 2.0, 3.0), (1.0, 1.0, 1.0)), True, "moco", is_input_known=True
    )
    assert Metadata.from_dict({}) == Metadata(is_input_known=True)


INVALID_FIELDS = [
    *({"input": each} for each in ("RGB", [1], 3, {}, {"channels": "RGB"}, {"channels": "RGB", "mean": [1, 2, 3]})),
    *({"input": VALID_FIELDS["input"] | {"channels": each}} for each in ("GRB", "rgb", "", None, ["RGB"], 3)),
    *(
        {"input": VALID_FIELDS["input"] | {"mean": each}}
        for each in ([], [1, 2], [1, 2, 3, 4], 3, None, "123", ["a", 1, 1])
    ),
    *(
        {"input": VALID_FIELDS["input"] | {"mean": [each, 1, 1]}}
        for each in (float("nan"), float("inf"), None, "x", [1])
    ),
    *({"input": VALID_FIELDS["input"] | {"std": [each, 1, 1]}} for each in (0, -1, float("nan"), float("inf"))),
    *({"stride_in_1x1": each} for each in ("True", 2, [], {}, 0.5)),
    *({"method": each} for each in (3, ["moco"], True, {})),
    *({"branch": each} for each in (3, None, ["online"], "ema", "")),
]


@pytest.mark.parametrize("part", INVALID_FIELDS, ids=str)
def test_invalid_metadata_is_refused(part):
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
        Metadata.from_dict(VALID_FIELDS | part)


def test_flipping_channels_twice_changes_nothing():
    assert IMAGENET.flip_channels() == InputFormat("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
    assert IMAGENET.flip_channels().flip_channels() == IMAGENET


def test_config_overrides():
    assert get_config_overrides(make_checkpoint("resnet50", images=MSRA, stride_in_1x1=True)) == {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
    }
    assert get_config_overrides(make_checkpoint("resnet18", images=None)) == {
        "INPUT.FORMAT": None,
        "MODEL.PIXEL_MEAN": None,
        "MODEL.PIXEL_STD": None,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    }


def test_a_file_is_read_the_same_whatever_order_its_tensors_have(tmp_path):
    torch.save(dict(reversed(make_state().items())), tmp_path / "x.pth")
    assert list(read_checkpoint(tmp_path / "x.pth").tensors) == list(make_state())


@pytest.mark.parametrize("branch", ["online", "momentum"])
def test_each_branch_can_be_read(branch, tmp_path):
    networks = {
        f"encoder_{letter}.{name}": tensor
        for letter, seed in (("q", 1), ("k", 2))
        for name, tensor in make_state(seed=seed).items()
    }
    torch.save({"state_dict": {**networks, "queue": torch.ones(1)}}, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth", branch=branch)
    expected, other = (make_state(seed=1), "momentum") if branch == "online" else (make_state(seed=2), "online")
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in expected.items())
    assert (checkpoint.metadata.branch, checkpoint.metadata.method) == (branch, "moco")
    assert set(checkpoint.coverage.left_out.values()) == {f"of the {other} branch", "MoCo's queue"}
    assert torch.equal(read_checkpoint(tmp_path / "x.pth").tensors["conv1.weight"], make_state(seed=1)["conv1.weight"])


def test_tensors_under_another_prefix_of_the_same_branch_are_unexpected(tmp_path):
    tensors = {f"backbone.{name}": tensor for name, tensor in make_state().items()}
    torch.save({**tensors, "classifier.weight": torch.ones(1), "encoder.x": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"1 unexpected tensor\(s\): encoder\.x;"):
        read_checkpoint(tmp_path / "x.pth", format="solo-learn")
