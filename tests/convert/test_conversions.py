"""Every kind of file is read, and converted into every format: tensors are bit-identical, losses are reported."""

import io
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.convert.checkpoints import (
    ARCHS,
    FILE_KINDS,
    drop_batch_counters,
    find_differences,
    make_backbone,
    make_detector_states,
    write_checkpoint_file,
)

from ssql_det.convert import (
    IMAGENET,
    MSRA,
    Checkpoint,
    InputFormat,
    Metadata,
    get_architecture,
    get_writers,
    read_checkpoint,
    write_checkpoint,
)
from ssql_det.core.errors import UserError

pytestmark = pytest.mark.slow

PLAIN = ("torchvision", "timm", "safetensors")  # only for RGB input and strides in the 3x3 conv
DETECTORS = {"FPN": "detectron2-fpn", "C4": "detectron2-c4"}
WITH_METADATA = ("ssql_det", "safetensors", "detectron2", *DETECTORS.values())


@dataclass
class Case:
    name: str
    arch: str
    path: Any
    extras: set  # names that are not of the backbone
    checkpoint: Checkpoint

    @property
    def source(self):
        """The kind of its file."""
        return FILE_KINDS[self.name]

    def make_backbone(self, branch=None):
        """What the file was made of."""
        seed = int((branch or self.source.branches[0]) == "momentum")
        return self.source.convert_backbone(make_backbone(self.arch, seed))


DEEP = (  # for each way to name the parts of a block, and for each convention of bottlenecks
    *("torchvision", "timm .safetensors", "SSQL-SimSiam", "lightly's DINO example", "Hugging Face .bin, no classifier"),
    *("Detectron2's torchvision", "Detectron2's zoo, FPN", "Detectron2's zoo, C4", "a C4 detector", "an old detector"),
    *("MSRA", "Detectron's FPN", "ssql_det"),
)
FILES = {"resnet18": FILE_KINDS, "resnet34": ("torchvision",), "resnet50": DEEP}
CASES = [(arch, name) for arch in ARCHS for name in FILE_KINDS if name in FILES[arch]]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory):
    arch, name = request.param
    path, extras = write_checkpoint_file(name, arch, tmp_path_factory.mktemp("source"))
    yield Case(name, arch, path, extras, read_checkpoint(path))
    path.unlink()


# ---------------------------------------------------------------- from every kind of file


def test_a_file_is_of_one_format_and_one_architecture(case):
    assert (case.checkpoint.source.format, case.checkpoint.architecture.name) == (case.source.format, case.arch)


def test_what_a_file_holds_is_read_to_the_bit(case):
    assert find_differences(case.checkpoint.tensors, case.make_backbone()) == set()
    parts = make_detector_states(case.arch, case.source.detector)[1] if case.source.detector else {}
    assert find_differences(case.checkpoint.detector, parts) == set()


def test_what_is_not_of_the_backbone_is_named_with_a_reason(case):
    coverage = case.checkpoint.coverage
    assert set(coverage.left_out) == case.extras
    assert all(coverage.left_out.values())
    assert not set(coverage.used) & case.extras
    assert (coverage.unmatched, coverage.missing, coverage.invalid, coverage.percent) == ((), (), {}, 100)


def test_metadata_is_by_the_convention_of_the_format(case):
    metadata = case.checkpoint.metadata
    assert (metadata.input and metadata.input.channels) == case.source.channels
    mean, std = case.source.get_mean_and_std() or (None, None)
    assert (metadata.input and metadata.input.mean) == (mean and pytest.approx(mean))  # in a file it may be of float32
    assert (metadata.input and metadata.input.std) == (std and pytest.approx(std))
    assert (metadata.stride_in_1x1, metadata.method) == (case.source.stride_in_1x1, case.source.method)
    assert metadata.branch == case.source.branches[0]


@pytest.mark.parametrize("case", [("resnet18", name) for name in FILE_KINDS], indirect=True, ids=FILE_KINDS)
def test_a_branch_is_read_by_its_name_and_one_that_is_not_there_is_refused(case):
    for branch, other in (("online", "momentum"), ("momentum", "online")):
        if branch not in case.source.branches:
            with pytest.raises(UserError, match=f"has no branch '{branch}', only {other}"):
                read_checkpoint(case.path, branch=branch)
        elif branch != case.source.branches[0]:
            checkpoint = read_checkpoint(case.path, branch=branch)
            assert find_differences(checkpoint.tensors, case.make_backbone(branch)) == set()
            assert (checkpoint.metadata.branch, checkpoint.source.format) == (branch, case.source.format)
            left_out = set(checkpoint.coverage.left_out)
            assert not left_out & set(checkpoint.coverage.used)
            assert left_out | set(checkpoint.coverage.used) == case.extras | set(case.checkpoint.coverage.used)


# ---------------------------------------------------------------- into every format and back

WRITTEN = {"resnet18": 5, "resnet50": 2}  # by how many of the kinds below checkpoints differ
_checked = set()


def test_what_is_written_comes_back_to_the_bit_or_is_refused(case, tmp_path):
    """Checkpoints that a writer treats alike are written once; of bottlenecks, one for each place of the strides."""
    source = case.source
    for format in get_writers() if case.arch in WRITTEN else ():
        detector = source.detector if format in (*DETECTORS.values(), "ssql_det") else source.detector is not None
        kinds = (expected_error(case, format), source.stride_in_1x1, detector, source.channels, source.convert_backbone)
        kind = (case.arch, format, *kinds[: WRITTEN[case.arch]])
        if kind not in _checked:
            check_round_trip(case, format, tmp_path)
            _checked.add(kind)


def expected_error(case, format):
    source = case.source
    if format in PLAIN and case.arch == "resnet50" and source.stride_in_1x1 is None:
        return "does not say whether its strides are in the 1x1"
    if format in PLAIN and case.arch == "resnet50" and source.stride_in_1x1:
        return "has its strides in the 1x1 convs, as MSRA's"
    if format in PLAIN and source.channels is None:
        return "does not say whether it takes RGB or BGR"
    if source.detector and format in set(DETECTORS.values()) - {DETECTORS[source.detector]}:
        return f"{source.detector} detector and cannot become an? "
    return None


def check_round_trip(case, format, folder):
    path = folder / f"written{get_writers()[format].suffixes[0]}"
    if reason := expected_error(case, format):
        with pytest.raises(UserError, match=reason):
            write_checkpoint(case.checkpoint, path, format)
        assert not path.exists()
        return
    left_behind = write_checkpoint(case.checkpoint, path, format)
    again = read_checkpoint(path)
    path.unlink()

    assert again.source.format == ("torchvision" if format == "timm" else format)
    assert again.architecture.name == case.arch
    expected = case.make_backbone()
    lost = set()
    if format not in (*PLAIN, "ssql_det"):
        lost |= expected.keys() - drop_batch_counters(expected).keys()
        expected = drop_batch_counters(expected)
    if format in PLAIN and case.source.channels == "BGR":
        assert torch.equal(again.tensors["conv1.weight"][:, [2, 1, 0]], expected["conv1.weight"])
        expected = {**expected, "conv1.weight": expected["conv1.weight"][:, [2, 1, 0]]}
    assert find_differences(again.tensors, expected) == set()

    keeps_detector = format in ("ssql_det", DETECTORS.get(case.source.detector))
    assert find_differences(again.detector, case.checkpoint.detector if keeps_detector else {}) == set()
    lost |= set() if keeps_detector else set(case.checkpoint.detector)
    images = case.checkpoint.metadata.input
    if images is not None and images.channels == "BGR" and format in PLAIN:
        images = images.flip_channels()
    assert left_behind.keys() - {"input"} == lost
    assert all(left_behind.values())
    if format in WITH_METADATA:
        assert again.metadata == replace(case.checkpoint.metadata, input=images)


# ---------------------------------------------------------------- networks of BGR images


def make_narrow_checkpoint(input_format, stride_in_1x1=False):
    """A small checkpoint, named without the package's tables."""
    numbers = torch.Generator().manual_seed(0)
    specs = get_architecture("narrow_resnet").tensors
    names = (
        (f"layer{spec.stage}.{spec.block}." if spec.stage else "", "bn" if spec.is_norm else "conv", spec)
        for spec in specs
    )
    tensors = {}
    for prefix, kind, spec in names:
        module = f"{kind}{spec.conv}" if spec.conv else f"downsample.{int(spec.is_norm)}"
        value = torch.randn(spec.shape, generator=numbers)
        tensors[f"{prefix}{module}.{spec.name_in_layer}"] = value if spec.shape else torch.tensor(100)
    return Checkpoint(get_architecture("narrow_resnet"), tensors, Metadata(input_format, stride_in_1x1))


@pytest.mark.parametrize("format", PLAIN)
def test_the_stem_of_a_bgr_network_is_flipped_and_flipped_back(format, tmp_path):
    images = InputFormat("BGR", (103.5, 116.3, 123.7), (57.4, 57.1, 58.4))
    original = make_narrow_checkpoint(images)
    path = tmp_path / f"x{get_writers()[format].suffixes[0]}"
    write_checkpoint(original, path, format)
    converted = read_checkpoint(path)
    assert {name for name in original.tensors if not torch.equal(original.tensors[name], converted.tensors[name])} == {
        "conv1.weight"
    }
    assert torch.equal(converted.tensors["conv1.weight"][:, [2, 1, 0]], original.tensors["conv1.weight"])
    if format == "safetensors":
        assert converted.metadata.input == InputFormat("RGB", (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    back = replace(make_narrow_checkpoint(images.flip_channels()), tensors={**converted.tensors})
    write_checkpoint(back, path, format, replace=True)
    assert find_differences(read_checkpoint(path).tensors, converted.tensors) == set()


@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_mean_and_std_that_a_format_cannot_store_are_reported(format):
    for input_format, is_reported in ((IMAGENET, False), (IMAGENET.flip_channels(), False), (MSRA, True)):
        left_behind = get_writers()[format].write(make_narrow_checkpoint(input_format), io.BytesIO())
        assert list(left_behind) == (["input"] if is_reported else []), input_format
    assert "mean [123.675, 116.28, 103.53] and std [1.0, 1.0, 1.0]" in left_behind["input"]
