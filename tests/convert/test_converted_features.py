"""A converted network computes the same features of the same image, in each library's own class.

In float64, so that a difference is one of weights, strides or channels and not of rounding.
"""

import functools

import pytest
import timm
import torch
import torchvision
from support.convert.checkpoints import (
    drop_batch_counters,
    make_backbone,
    make_classifier,
    make_config,
    make_network,
    make_pickle_writer,
    to_detectron2_names,
)

from ssql_det import d2
from ssql_det.convert import IMAGENET, MSRA, get_config_overrides, load_backbone, read_checkpoint, write_checkpoint
from ssql_det.core.errors import UserError

pytestmark = pytest.mark.slow

STAGES = ("res2", "res3", "res4", "res5")


@pytest.fixture(scope="module")
def image():
    """RGB, 0 to 255."""
    return torch.rand(1, 3, 50, 60, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 255


def normalize(image, images):
    """With mean and std for values 0 to 1, as most libraries do it."""
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) / 255 for each in (images.mean, images.std))
    return (image / 255 - mean) / std


def compute_stages(model, x):
    """torchvision's and timm's ResNets."""
    x = model.maxpool(torch.relu(model.bn1(model.conv1(x))))
    features = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        features.append(x)
    return features


def build_loaded(build, arch, state):
    with torch.device("meta"):  # no weights are drawn
        model = build(arch)
    lost = model.load_state_dict(state, strict=False, assign=True)
    assert (lost.missing_keys, lost.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    return model.double().eval()


@torch.no_grad()
def compute_engine_features(checkpoint, image):
    """Features of a detector with the config that the checkpoint needs, which flips and normalizes the image itself."""
    lines = get_config_overrides(checkpoint)
    pairs = [each for line in lines.items() for each in line]
    model = d2.build_model(make_config(checkpoint.architecture.name, "FPN", *pairs))
    load_backbone(model, checkpoint)
    model = model.double().eval()
    if model.input_format == "BGR":
        image = image.flip(1)
    pixels = model.preprocess_image([{"image": image[0]}]).tensor[..., : image.shape[2], : image.shape[3]]
    features = model.backbone.bottom_up(pixels)
    return [features[stage] for stage in STAGES]


@torch.no_grad()
def assert_close_features(features, expected):
    for actual, reference, stage in zip(features, expected, STAGES, strict=True):
        largest = reference.abs().max().item()
        assert 1e-3 < largest < 1e6, stage
        assert (actual - reference).abs().max().item() <= 1e-5 * largest, stage


BUILDERS = {
    "torchvision": lambda arch: torchvision.models.get_model(arch, weights=None),
    "timm": lambda arch: timm.create_model(arch),
}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvision_timm_and_the_engine_compute_the_same_features(arch, image, tmp_path):
    torch.save(make_network(arch), tmp_path / "x.pth")
    source = build_loaded(BUILDERS["torchvision"], arch, make_backbone(arch))
    with torch.no_grad():
        expected = compute_stages(source, normalize(image, IMAGENET))

    write_checkpoint(read_checkpoint(tmp_path / "x.pth"), tmp_path / "timm.bin", "timm")
    there = build_loaded(BUILDERS["timm"], arch, torch.load(tmp_path / "timm.bin"))
    write_checkpoint(read_checkpoint(tmp_path / "timm.bin"), tmp_path / "x.pkl", "detectron2")
    write_checkpoint(read_checkpoint(tmp_path / "x.pkl"), tmp_path / "back.pt", "torchvision")
    back = build_loaded(BUILDERS["torchvision"], arch, torch.load(tmp_path / "back.pt"))
    with torch.no_grad():
        for model in (there, back):
            assert_close_features(compute_stages(model, normalize(image, IMAGENET)), expected)
    assert_close_features(compute_engine_features(read_checkpoint(tmp_path / "x.pkl"), image), expected)


@pytest.fixture(scope="module")
def zoo_backbone(tmp_path_factory):
    """Reads a network as in Detectron2's model zoo: BGR, std 1, the stride in the 1x1 conv."""

    @functools.cache
    def write_and_read(arch):
        extras = {f"stem.fc.{name}": value for name, value in make_classifier().items()}
        state = {**to_detectron2_names(drop_batch_counters(make_backbone(arch))), **extras}
        arrays = {name: value.numpy() for name, value in state.items()}
        path = tmp_path_factory.mktemp("zoo") / "x.pkl"
        with open(path, "wb") as file:
            make_pickle_writer(2)({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file)
        return read_checkpoint(path)

    return write_and_read


def move_strides_to_1x1(model):
    """Make torchvision's network one of MSRA's, with the same weights."""
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_model_zoo_network_takes_bgr_and_has_its_strides_in_the_1x1(arch, image, zoo_backbone):
    checkpoint = zoo_backbone(arch)
    source = build_loaded(BUILDERS["torchvision"], arch, make_backbone(arch))
    if arch == "resnet50":
        move_strides_to_1x1(source)
    bgr = image.flip(1) - torch.tensor(MSRA.mean, dtype=torch.float64).view(3, 1, 1)
    with torch.no_grad():
        expected = compute_stages(source, bgr)
    assert_close_features(compute_engine_features(checkpoint, image), expected)


@pytest.mark.parametrize(("format", "name"), [("torchvision", "x.pth"), ("safetensors", "x.safetensors")])
def test_a_bgr_network_takes_rgb_images_after_conversion_to_torchvision(format, name, image, zoo_backbone, tmp_path):
    checkpoint = zoo_backbone("resnet18")
    expected = compute_engine_features(checkpoint, image)
    write_checkpoint(checkpoint, tmp_path / name, format)
    converted = read_checkpoint(tmp_path / name)
    model = build_loaded(BUILDERS["torchvision"], "resnet18", converted.tensors)
    with torch.no_grad():
        assert_close_features(compute_stages(model, normalize(image, MSRA.flip_channels())), expected)
    if format == "safetensors":  # it says what images it takes, so the engine can be set up for them
        assert_close_features(compute_engine_features(converted, image), expected)


def test_a_network_with_another_stride_or_input_format_is_refused(zoo_backbone):
    checkpoint = zoo_backbone("resnet50")
    before = d2.build_model(make_config("resnet50", "C4", "MODEL.RESNETS.STRIDE_IN_1X1", False))
    with pytest.raises(UserError, match="STRIDE_IN_1X1 True"):
        load_backbone(before, checkpoint)
    before = d2.build_model(make_config("resnet50", "C4", "INPUT.FORMAT", "RGB"))
    with pytest.raises(UserError, match="trained with another input format"):
        load_backbone(before, checkpoint)
