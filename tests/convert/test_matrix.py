"""Every kind of file into every format, of three depths: each tensor to the bit, and nothing lost in silence."""

import io
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.convert.checkpoints import ARCHS, SOURCES, backbone, detector_states, same, uncounted, write_source

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

PLAIN = ("torchvision", "timm", "safetensors")  # these hold networks of RGB images that stride in the 3x3
DETECTORS = {"FPN": "detectron2-fpn", "C4": "detectron2-c4"}
TELL = ("ssql_det", "safetensors", "detectron2", *DETECTORS.values())  # these tell what is known about a network


@dataclass
class Case:
    name: str
    arch: str
    path: Any
    extras: set  # names beside the backbone
    checkpoint: Checkpoint

    @property
    def source(self):
        return SOURCES[self.name]

    def backbone(self, branch=None):
        """What the file was made of."""
        seed = int((branch or self.source.branches[0]) == "momentum")
        return self.source.tensors(backbone(self.arch, seed))


ONE_OF_EACH = {each.format: name for name, each in SOURCES.items()}.values()
MORE = (
    *("torchvision", "timm .safetensors", "SSQL-SimSiam", "SSQL-BYOL", "MoCo v2", "lightly's BYOL", "BYOL of sthalles"),
    *("Hugging Face .safetensors", "Detectron2's torchvision", "Detectron2's zoo, FPN", "Detectron2's zoo, C4"),
    *("MSRA", "MSRA of Detectron", "Detectron's FPN", "our own"),
)
FILES = {"resnet18": SOURCES, "resnet34": ONE_OF_EACH, "resnet50": {*ONE_OF_EACH, *MORE}}
CASES = [(arch, name) for arch in ARCHS for name in SOURCES if name in FILES[arch]]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory):
    arch, name = request.param
    path, extras = write_source(name, arch, tmp_path_factory.mktemp("source"))
    yield Case(name, arch, path, extras, read_checkpoint(path))
    path.unlink()


# ---------------------------------------------------------------- from every kind of file


def test_a_file_is_of_one_format_and_one_architecture(case):
    assert (case.checkpoint.source.format, case.checkpoint.architecture.name) == (case.source.format, case.arch)


def test_what_a_file_holds_is_read_to_the_bit(case):
    assert same(case.checkpoint.tensors, case.backbone()) == set()
    parts = detector_states(case.arch, case.source.kind)[1] if case.source.kind else {}
    assert same(case.checkpoint.detector, parts) == set()


def test_what_is_not_of_the_backbone_is_named_with_a_reason(case):
    coverage = case.checkpoint.coverage
    assert set(coverage.left_out) == case.extras
    assert all(coverage.left_out.values())
    assert not set(coverage.used) & case.extras
    assert (coverage.unmatched, coverage.missing, coverage.invalid, coverage.percent) == ((), (), {}, 100)


def test_what_is_known_of_a_network_is_by_the_custom_of_its_format(case):
    metadata = case.checkpoint.metadata
    assert (metadata.input and metadata.input.channels) == case.source.channels
    mean, std = case.source.means_and_stds() or (None, None)
    assert (metadata.input and metadata.input.mean) == (mean and pytest.approx(mean))  # in a file it may be of float32
    assert (metadata.input and metadata.input.std) == (std and pytest.approx(std))
    assert (metadata.stride_in_1x1, metadata.method) == (case.source.stride_in_1x1, case.source.method)
    assert metadata.branch == case.source.branches[0]


@pytest.mark.parametrize("case", [("resnet18", name) for name in SOURCES], indirect=True, ids=SOURCES)
def test_a_branch_is_read_by_its_name_and_one_that_is_not_there_is_refused(case):
    for branch, other in (("online", "momentum"), ("momentum", "online")):
        if branch not in case.source.branches:
            with pytest.raises(UserError, match=f"has no branch '{branch}', only {other}"):
                read_checkpoint(case.path, branch=branch)
        elif branch != case.source.branches[0]:  # that one is read already
            checkpoint = read_checkpoint(case.path, branch=branch)
            assert same(checkpoint.tensors, case.backbone(branch)) == set()
            assert (checkpoint.metadata.branch, checkpoint.source.format) == (branch, case.source.format)
            left_out = set(checkpoint.coverage.left_out)
            assert not left_out & set(checkpoint.coverage.used)
            assert left_out | set(checkpoint.coverage.used) == case.extras | set(case.checkpoint.coverage.used)


# ---------------------------------------------------------------- into every format and back

_trips = set()


def test_what_is_written_comes_back_to_the_bit_or_is_refused(case, tmp_path):
    """Files in which a writer sees the same are written once; of deeper networks, fewer kinds."""
    source = case.source
    for format in get_writers():
        detector = source.kind if format in (*DETECTORS.values(), "ssql_det") else source.kind is not None
        kinds = (source.channels, source.stride_in_1x1, detector, source.tensors)
        kind = (case.arch, format, *kinds[: {"resnet18": 4, "resnet34": 1, "resnet50": 3}[case.arch]])
        if kind not in _trips:
            check_trip(case, format, tmp_path)
            _trips.add(kind)


def refusal(case, format):
    source = case.source
    if format in PLAIN and case.arch == "resnet50" and source.stride_in_1x1 is None:
        return "does not say whether its strides are in the 1x1"
    if format in PLAIN and case.arch == "resnet50" and source.stride_in_1x1:
        return "has its strides in the 1x1 convs, as MSRA's"
    if format in PLAIN and source.channels is None:
        return "does not say whether it takes RGB or BGR"
    if source.kind and format in set(DETECTORS.values()) - {DETECTORS[source.kind]}:
        return f"{source.kind} detector and cannot become an? "
    return None


def check_trip(case, format, folder):
    path = folder / f"written{get_writers()[format].suffixes[0]}"
    if reason := refusal(case, format):
        with pytest.raises(UserError, match=reason):
            write_checkpoint(case.checkpoint, path, format)
        assert not path.exists()
        return
    left_behind = write_checkpoint(case.checkpoint, path, format)
    again = read_checkpoint(path)
    path.unlink()

    assert again.source.format == ("torchvision" if format == "timm" else format)
    assert again.architecture.name == case.arch
    expected = case.backbone()
    lost = set()
    if format not in (*PLAIN, "ssql_det"):
        lost |= expected.keys() - uncounted(expected).keys()
        expected = uncounted(expected)
    if format in PLAIN and case.source.channels == "BGR":
        assert torch.equal(again.tensors["conv1.weight"][:, [2, 1, 0]], expected["conv1.weight"])
        expected = {**expected, "conv1.weight": expected["conv1.weight"][:, [2, 1, 0]]}
    assert same(again.tensors, expected) == set()

    keeps_detector = format in ("ssql_det", DETECTORS.get(case.source.kind))
    assert same(again.detector, case.checkpoint.detector if keeps_detector else {}) == set()
    lost |= set() if keeps_detector else set(case.checkpoint.detector)
    images = case.checkpoint.metadata.input
    if images is not None and images.channels == "BGR" and format in PLAIN:
        images = images.flip_channels()
    assert left_behind.keys() - {"input"} == lost
    assert all(left_behind.values())
    if format in TELL:
        assert again.metadata == replace(case.checkpoint.metadata, input=images)


# ---------------------------------------------------------------- what other networks than RGB's become


def narrow(images, stride_in_1x1=False):
    """A checkpoint by hand: it costs nothing to write."""
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
        tensors[f"{prefix}{module}.{spec.kind}"] = value if spec.shape else torch.tensor(100)
    return Checkpoint(get_architecture("narrow_resnet"), tensors, Metadata(images, stride_in_1x1))


@pytest.mark.parametrize("format", PLAIN)
def test_a_stem_of_bgr_images_is_turned_once_and_turned_back_is_the_same(format, tmp_path):
    images = InputFormat("BGR", (103.5, 116.3, 123.7), (57.4, 57.1, 58.4))
    ours = narrow(images)
    path = tmp_path / f"x{get_writers()[format].suffixes[0]}"
    write_checkpoint(ours, path, format)
    theirs = read_checkpoint(path)
    assert {name for name in ours.tensors if not torch.equal(ours.tensors[name], theirs.tensors[name])} == {
        "conv1.weight"
    }
    assert torch.equal(theirs.tensors["conv1.weight"][:, [2, 1, 0]], ours.tensors["conv1.weight"])
    if format == "safetensors":
        assert theirs.metadata.input == InputFormat("RGB", (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    back = narrow(images.flip_channels())
    back = replace(back, tensors={**theirs.tensors})
    write_checkpoint(back, path, format, replace=True)
    assert same(read_checkpoint(path).tensors, theirs.tensors) == set()


@pytest.mark.parametrize("format", ["torchvision", "timm"])
def test_what_a_file_cannot_say_of_the_images_is_said_when_it_is_written(format):
    for images, said in ((IMAGENET, False), (IMAGENET.flip_channels(), False), (MSRA, True)):
        left_behind = get_writers()[format].write(narrow(images), io.BytesIO())
        assert list(left_behind) == (["input"] if said else []), images
    assert "mean [123.675, 116.28, 103.53] and std [1.0, 1.0, 1.0]" in left_behind["input"]
