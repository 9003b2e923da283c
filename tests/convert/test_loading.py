"""Loading a checkpoint into a network: all its tensors and no others are changed, or none is."""

import copy

import pytest
import timm
import torch
import torchvision
from support.convert.crafted_checkpoints import make_checkpoint, make_state
from torch import nn

from ssql_det import d2
from ssql_det.backbones import build_backbone
from ssql_det.convert import (
    CIFAR,
    IMAGENET,
    MSRA,
    Checkpoint,
    Metadata,
    get_architecture,
    get_config_overrides,
    load_backbone,
    load_detector,
    read_checkpoint,
    write_checkpoint,
)
from ssql_det.core.errors import UserError

pytestmark = pytest.mark.slow

STAGES = ["res2", "res3", "res4", "res5"]
C4 = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RPN.CONV_DIMS": [8],
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32]],
    "MODEL.MASK_ON": False,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
}
FPN = C4 | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": STAGES,
    "MODEL.FPN.IN_FEATURES": STAGES,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 2,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
}
TORCHVISION_INPUT = {  # of networks trained as torchvision's
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": list(IMAGENET.mean),
    "MODEL.PIXEL_STD": list(IMAGENET.std),
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
}
MASKS = {"MODEL.MASK_ON": True}
BATCH_NORM = {"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0}


def resnet_keys(depth):
    return {"MODEL.RESNETS.DEPTH": depth} | ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 64} if depth < 50 else {})


def make_config(*parts):
    keys = {key: value for part in parts for key, value in part.items()}
    return d2.read_config(overrides=[str(each) for pair in keys.items() for each in pair])


def build_detector(*parts):
    torch.manual_seed(7)
    return d2.build_model(make_config(*parts))


@pytest.fixture(scope="module", autouse=True)
def custom_heads():
    """A C4 head whose last stage is of BasicBlocks, with a norm after it."""

    class BasicRes5ROIHeads(d2.Res5ROIHeads):
        @classmethod
        def _build_res5_block(cls, cfg):
            norm = cfg.MODEL.RESNETS.NORM
            blocks = d2.ResNet.make_stage(
                d2.BasicBlock, 2, in_channels=256, out_channels=512, stride_per_block=[2, 1], norm=norm
            )
            stage = nn.Sequential(*blocks)
            stage.add_module("norm", nn.BatchNorm2d(512))
            return stage, 512

    d2.ROI_HEADS_REGISTRY.register(BasicRes5ROIHeads)
    yield
    del d2.ROI_HEADS_REGISTRY._obj_map["BasicRes5ROIHeads"]


@pytest.fixture(autouse=True)
def _fast_initialization(tmp_path, monkeypatch):
    """In a folder of its own, without random initialization, which would take most of the time."""
    monkeypatch.chdir(tmp_path)
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *args, **kwargs: tensor.fill_(0.5))


BASIC_HEADS = {"MODEL.ROI_HEADS.NAME": "BasicRes5ROIHeads"}


def to_detectron2_name(name, prefix="", last="", stem="stem.conv1"):
    """From torchvision's name, independently of the package's tables."""
    if not name.startswith("layer"):
        return prefix + name.replace("conv1", stem).replace("bn1", f"{stem}.norm")
    stage, block, rest = name.split(".", 2)
    rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for conv in "123":
        rest = rest.replace(f"bn{conv}", f"conv{conv}.norm")
    stage = int(stage.removeprefix("layer")) + 1
    return f"{last if stage == 5 and last else prefix}res{stage}.{block}.{rest}"


NAMES = {
    "C4": lambda name: to_detectron2_name(name, "backbone.", "roi_heads."),
    "FPN": lambda name: to_detectron2_name(name, "backbone.bottom_up."),
    "ResNet": to_detectron2_name,
    "torchvision": lambda name: name,
}


def copy_state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_loaded(model, before, checkpoint, rename, coverage):
    """The checkpoint's tensors are loaded and all others unchanged, bit for bit."""
    after = model.state_dict()
    renamed = {rename(name): tensor for name, tensor in checkpoint.tensors.items()}
    in_network = {name: tensor for name, tensor in renamed.items() if name in after}
    assert all(name.endswith("num_batches_tracked") for name in renamed.keys() - in_network.keys())
    assert all(torch.equal(after[name], tensor.to(after[name].dtype)) for name, tensor in in_network.items())
    assert not any(torch.equal(before[name], after[name]) for name in in_network)
    assert all(torch.equal(before[name], after[name]) for name in after.keys() - in_network.keys())
    assert coverage.percent == 100
    assert set(coverage.used) == set(in_network)
    assert (coverage.missing, coverage.unmatched, coverage.invalid) == ((), (), {})
    backbone = {name for name, why in coverage.left_out.items() if why == "not of the backbone"}
    assert backbone == after.keys() - in_network.keys()
    assert coverage.left_out.keys() - backbone == renamed.keys() - in_network.keys()


def get_error(model, checkpoint, load=load_backbone):
    before = copy_state(model)
    with pytest.raises(UserError) as error:
        load(model, checkpoint)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert str(error.value).isprintable()
    return str(error.value)


# ---------------------------------------------------------------- backbones

DETECTORS = {
    "R18-FPN": (FPN, resnet_keys(18), TORCHVISION_INPUT),
    "R18-FPN normed": (FPN, resnet_keys(18), TORCHVISION_INPUT, BATCH_NORM),
    "R18-FPN all normed": (FPN, resnet_keys(18), TORCHVISION_INPUT, BATCH_NORM, {"MODEL.FPN.NORM": "BN"}),
    "R18-C4": (C4, resnet_keys(18), TORCHVISION_INPUT, BASIC_HEADS),
    "R18-C4 normed": (C4, resnet_keys(18), TORCHVISION_INPUT, BATCH_NORM, BASIC_HEADS),
    "R34-FPN": (FPN, resnet_keys(34), TORCHVISION_INPUT),
    "R50-FPN with masks": (FPN, resnet_keys(50), TORCHVISION_INPUT, MASKS),
    "R50-C4": (C4, resnet_keys(50), TORCHVISION_INPUT),
    "R50-C4 normed, with masks": (C4, resnet_keys(50), TORCHVISION_INPUT, BATCH_NORM, MASKS),
}


@pytest.mark.parametrize("parts", DETECTORS.values(), ids=DETECTORS)
def test_a_detectors_backbone_is_loaded_and_the_rest_is_kept(parts):
    model = build_detector(*parts)
    before = copy_state(model)
    checkpoint = make_checkpoint(
        f"resnet{next(part['MODEL.RESNETS.DEPTH'] for part in parts if 'MODEL.RESNETS.DEPTH' in part)}"
    )
    coverage = load_backbone(model, checkpoint)
    rename = NAMES["C4" if "roi_heads.res5.0.conv1.weight" in before else "FPN"]
    assert_loaded(model, before, checkpoint, rename, coverage)


def test_a_norm_after_the_last_stage_is_not_of_the_backbone():
    model = build_detector(C4, resnet_keys(18), TORCHVISION_INPUT, BASIC_HEADS)
    coverage = load_backbone(model, make_checkpoint("resnet18"))
    assert coverage.left_out["roi_heads.res5.norm.weight"] == "not of the backbone"
    assert coverage.left_out["backbone.stem.conv1.norm.num_batches_tracked"] == "FrozenBatchNorm2d has no such buffer"
    assert model.roi_heads.res5.norm.weight.eq(1).all()


NETWORKS = {
    "torchvision": ("resnet18", lambda: torchvision.models.resnet18()),
    "torchvision's bottlenecks": ("resnet50", lambda: torchvision.models.resnet50()),
    "timm": ("resnet18", lambda: timm.create_model("resnet18")),
    "narrow": ("narrow_resnet", lambda: build_backbone("narrow_resnet").module),
    "CIFAR": ("cifar_resnet18", lambda: build_backbone("cifar_resnet18").module),
}


@pytest.mark.parametrize(("name", "build"), NETWORKS.values(), ids=NETWORKS)
def test_networks_with_torchvisions_names_are_loaded(name, build):
    model = build()
    before, checkpoint = copy_state(model), make_checkpoint(name)
    coverage = load_backbone(model, checkpoint)
    assert_loaded(model, before, checkpoint, NAMES["torchvision"], coverage)


def build_resnet(depth=18, **keys):
    cfg = make_config(C4, resnet_keys(depth), TORCHVISION_INPUT, {"MODEL.RESNETS.OUT_FEATURES": ["res5"], **keys})
    return d2.build_backbone(cfg)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_resnet_alone_is_loaded(norm):
    model = build_resnet(**{"MODEL.RESNETS.NORM": norm})
    before, checkpoint = copy_state(model), make_checkpoint("resnet18")
    assert_loaded(model, before, checkpoint, NAMES["ResNet"], load_backbone(model, checkpoint))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_loaded_network_computes_the_same_as_torchvisions(name):
    torch.manual_seed(3)
    network, reference = (
        build_resnet(int(name.removeprefix("resnet"))).eval(),
        torchvision.models.get_model(name).eval(),
    )
    for tensor in reference.state_dict().values():
        if tensor.dim() == 4:
            tensor.copy_(torch.randn(tensor.shape) * (2 / tensor[0].numel()) ** 0.5)
        elif tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    load_backbone(network, Checkpoint(get_architecture(name), reference.state_dict(), Metadata(IMAGENET, False)))
    reference.avgpool, reference.fc = nn.Identity(), nn.Identity()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = network(images)["res5"], reference(images).view(1, -1, 2, 3)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_converted_to_the_networks_dtype(dtype, tmp_path):
    tensors = {name: tensor.to(dtype) if tensor.dim() else tensor for name, tensor in make_state().items()}
    torch.save(tensors, tmp_path / "x.pth")
    model = build_backbone("narrow_resnet").module
    load_backbone(model, read_checkpoint(tmp_path / "x.pth"))
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.dim()} == {torch.float32}
    assert torch.equal(model.conv1.weight, tensors["conv1.weight"].float())


def test_a_loaded_network_shares_no_memory_with_the_checkpoint_and_can_be_trained():
    model, checkpoint = build_backbone("narrow_resnet").module, make_checkpoint()
    load_backbone(model, checkpoint)
    assert model.conv1.weight.requires_grad
    assert model.conv1.weight.is_leaf
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert checkpoint.tensors["conv1.weight"].gt(0).all()


# ---------------------------------------------------------------- errors


def test_resnet18_does_not_fit_detectron2s_c4_head():
    sentence = get_error(build_detector(C4, resnet_keys(18), TORCHVISION_INPUT), make_checkpoint("resnet18"))
    assert "the checkpoint is a resnet18 and does not fit this network: roi_heads.res5.0" in sentence
    assert "a C4 head with the same blocks (Detectron2's own Res5ROIHeads has bottlenecks at any depth)" in sentence


@pytest.mark.parametrize(
    ("parts", "name", "fault"),
    [
        ((FPN, resnet_keys(34)), "resnet18", "backbone.bottom_up.res2.2.conv1.weight is not in the checkpoint"),
        ((FPN, resnet_keys(18)), "resnet34", "backbone.bottom_up.res2.2.conv1.weight is not in the network"),
        (
            (FPN, resnet_keys(50)),
            "resnet18",
            "backbone.bottom_up.res2.0.conv1.weight is of shape [64, 64, 1, 1], in the ",
        ),
        (
            (FPN, resnet_keys(18)),
            "resnet50",
            "backbone.bottom_up.res2.0.conv1.weight is of shape [64, 64, 3, 3], in the ",
        ),
        ((C4, resnet_keys(50)), "resnet101", "backbone.res4.6.conv1.weight is not in the network"),
        ((C4, resnet_keys(101)), "resnet50", "backbone.res4.6.conv1.weight is not in the checkpoint"),
        (
            (FPN, resnet_keys(18)),
            "narrow_resnet",
            "backbone.bottom_up.stem.conv1.weight is of shape [64, 3, 7, 7], in the ",
        ),
        ((C4, resnet_keys(34), BASIC_HEADS), "resnet34", "roi_heads.res5.2.conv1.weight is not in the network"),
    ],
    ids=[
        "R18 in R34",
        "R34 in R18",
        "R18 in R50",
        "R50 in R18",
        "R101 in R50",
        "R50 in R101",
        "narrow",
        "R34 in a head",
    ],
)
def test_another_architecture_is_refused_and_nothing_is_loaded(parts, name, fault):
    sentence = get_error(build_detector(*parts, TORCHVISION_INPUT), make_checkpoint(name))
    assert f"is a {name} and does not fit this network: " in sentence
    assert fault in sentence
    assert "; build the network with the same depth" in sentence


def test_an_additional_block_in_a_c4_head_counts_as_backbone():
    model = build_detector(C4, resnet_keys(18), TORCHVISION_INPUT, BASIC_HEADS)
    model.roi_heads.res5.add_module("2", copy.deepcopy(model.roi_heads.res5[1]))
    assert "roi_heads.res5.2.conv1.weight is not in the checkpoint" in get_error(model, make_checkpoint("resnet18"))


def test_a_cifar_stem_does_not_fit_an_imagenet_stem():
    sentence = get_error(torchvision.models.resnet18(), make_checkpoint("cifar_resnet18"))
    assert "conv1.weight is of shape [64, 3, 7, 7], in the checkpoint [64, 3, 3, 3]" in sentence


def test_a_checkpoint_with_a_missing_tensor_is_refused():
    checkpoint = make_checkpoint("resnet18")
    del checkpoint.tensors["layer3.0.bn2.running_var"]
    sentence = get_error(build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT), checkpoint)
    assert "backbone.bottom_up.res4.0.conv2.norm.running_var is not in the checkpoint" in sentence


def test_a_checkpoint_without_num_batches_tracked_is_complete():
    model, checkpoint = torchvision.models.resnet18(), make_checkpoint("resnet18")
    for name in [name for name in checkpoint.tensors if name.endswith("num_batches_tracked")]:
        del checkpoint.tensors[name]
    assert load_backbone(model, checkpoint).percent == 100
    assert model.bn1.num_batches_tracked == 0


IMAGES = {
    "the order": {"INPUT.FORMAT": "BGR"},
    "one mean": {"MODEL.PIXEL_MEAN": [123.675, 116.28, 103.0]},
    "flipped means": {"MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]},
    "one std": {"MODEL.PIXEL_STD": [58.395, 57.12, 57.0]},
    "no std": {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0]},
}


@pytest.mark.parametrize("keys", IMAGES.values(), ids=IMAGES)
def test_another_input_format_is_refused_with_the_keys_to_set(keys):
    model = build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT)
    cfg = make_config(FPN, resnet_keys(18), TORCHVISION_INPUT, keys)
    model.input_format = cfg.INPUT.FORMAT
    model.pixel_mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1)
    model.pixel_std = torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1)
    assert get_error(model, make_checkpoint("resnet18")).endswith(
        "was trained with another input format than this network has; set INPUT.FORMAT RGB "
        "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] MODEL.PIXEL_STD [58.395, 57.12, 57.375]"
    )


def test_a_rounded_mean_is_accepted():
    model = build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT, {"MODEL.PIXEL_MEAN": [123.68, 116.28, 103.53]})
    assert load_backbone(model, make_checkpoint("resnet18")).percent == 100


def test_unknown_input_format_and_stride_are_not_checked():
    model = build_detector(FPN, resnet_keys(50))
    assert load_backbone(model, make_checkpoint("resnet50", images=None, stride_in_1x1=None)).percent == 100


@pytest.mark.parametrize("in_1x1", [True, False])
@pytest.mark.parametrize("parts", [FPN, C4], ids=["FPN", "C4"])
def test_another_stride_is_refused_with_the_key_to_set(parts, in_1x1):
    model = build_detector(parts, resnet_keys(50), TORCHVISION_INPUT, {"MODEL.RESNETS.STRIDE_IN_1X1": not in_1x1})
    sentence = get_error(model, make_checkpoint("resnet50", stride_in_1x1=in_1x1))
    assert f"has its strides in the {'1x1' if in_1x1 else '3x3'} convs" in sentence
    assert sentence.endswith(f"set MODEL.RESNETS.STRIDE_IN_1X1 {in_1x1}")


def test_a_stride_in_the_1x1_does_not_fit_torchvision():
    assert "has its strides in the 1x1" in get_error(
        torchvision.models.resnet50(), make_checkpoint("resnet50", stride_in_1x1=True)
    )


@pytest.mark.parametrize(("images", "stride"), [(MSRA, True), (CIFAR, False)])
def test_a_network_built_with_the_config_overrides_is_loaded(images, stride):
    checkpoint = make_checkpoint("resnet50", images=images, stride_in_1x1=stride)
    assert load_backbone(build_detector(FPN, get_config_overrides(checkpoint)), checkpoint).percent == 100


@pytest.mark.parametrize(
    "build", [lambda: nn.Linear(2, 3), lambda: timm.create_model("resnet18d")], ids=["none", "deep"]
)
@pytest.mark.parametrize("load", [load_backbone, load_detector])
def test_a_network_without_a_resnet_is_refused(build, load):
    sentence = get_error(build(), make_checkpoint("resnet18"), load)
    assert sentence.startswith("this network has no known ResNet (none of backbone.bottom_up.stem.conv1.weight")


def test_the_error_names_the_file():
    torch.save(make_state(), "x.pth")
    assert get_error(torchvision.models.resnet18(), read_checkpoint("x.pth")).startswith("x.pth is a narrow_resnet")


# ---------------------------------------------------------------- whole detectors

WHOLE = {
    "R18-FPN": ("detectron2-fpn", FPN, resnet_keys(18), TORCHVISION_INPUT, MASKS),
    "R18-FPN normed": ("detectron2-fpn", FPN, resnet_keys(18), TORCHVISION_INPUT, BATCH_NORM),
    "R18-FPN all normed": (
        "detectron2-fpn",
        FPN,
        resnet_keys(18),
        TORCHVISION_INPUT,
        BATCH_NORM,
        {"MODEL.FPN.NORM": "BN"},
    ),
    "R18-C4": ("detectron2-c4", C4, resnet_keys(18), TORCHVISION_INPUT, BASIC_HEADS),
    "R50-C4": ("detectron2-c4", C4, resnet_keys(50)),
}


def saved_detector(*parts, change=lambda state: None):
    """A detector with distinct values, saved as Detectron2 saves it."""
    model = build_detector(*parts)
    for index, tensor in enumerate(model.state_dict().values()):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) % 97 + index)
    tensors = copy_state(model)
    change(tensors)
    torch.save({"model": tensors, "iteration": 9, "optimizer": {"state": {0: torch.ones(1)}}}, "model_final.pth")
    return model


@pytest.mark.parametrize(("format", "parts"), [(each[0], each[1:]) for each in WHOLE.values()], ids=WHOLE)
def test_a_whole_detector_is_loaded_bit_for_bit(format, parts):
    trained = saved_detector(*parts)
    checkpoint = read_checkpoint("model_final.pth")
    assert checkpoint.source.format == format
    fresh = build_detector(*parts)
    coverage = load_detector(fresh, checkpoint)
    expected = trained.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.state_dict().items())
    assert coverage.percent == 100
    assert set(coverage.used) == set(expected)


def test_a_detector_survives_conversion_to_ssql_det_and_back():
    trained = saved_detector(FPN, resnet_keys(18), TORCHVISION_INPUT)
    write_checkpoint(read_checkpoint("model_final.pth"), "own.pth", "ssql_det")
    write_checkpoint(read_checkpoint("own.pth"), "again.pth", "detectron2-fpn")
    for file in ("own.pth", "again.pth"):
        fresh = build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT)
        load_detector(fresh, read_checkpoint(file))
        assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in fresh.state_dict().items())


def remove(name):
    return lambda tensors: tensors.pop(name)


def add(name):
    return lambda tensors: tensors.update({name: torch.ones(1)})


@pytest.mark.parametrize(
    ("change", "parts", "fault"),
    [
        (remove("roi_heads.box_predictor.cls_score.bias"), (), "cls_score.bias is not in the checkpoint"),
        (remove("backbone.fpn_output3.weight"), (), "backbone.fpn_output3.weight is not in the checkpoint"),
        (add("roi_heads.mask_head.x"), (), "roi_heads.mask_head.x is not in the network"),
        (lambda tensors: None, (MASKS,), "roi_heads.mask_head.mask_fcn1.weight is not in the checkpoint"),
        (
            lambda tensors: None,
            ({"MODEL.ROI_HEADS.NUM_CLASSES": 5},),
            "roi_heads.box_predictor.cls_score.weight is of shape [6, 8], in the checkpoint [4, 8]",
        ),
    ],
    ids=["lacks a bias", "lacks an output", "has one more", "lacks masks", "other classes"],
)
def test_another_detector_is_refused_and_nothing_is_loaded(change, parts, fault):
    saved_detector(FPN, resnet_keys(18), TORCHVISION_INPUT, change=change)
    assert fault in get_error(
        build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT, *parts),
        read_checkpoint("model_final.pth"),
        load_detector,
    )


def test_a_detectors_backbone_alone_is_loaded_without_its_heads():
    trained = saved_detector(FPN, resnet_keys(18), TORCHVISION_INPUT)
    checkpoint = read_checkpoint("model_final.pth")
    model = build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT, {"MODEL.ROI_HEADS.NUM_CLASSES": 5})
    before = copy_state(model)
    assert load_backbone(model, checkpoint).percent == 100
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (trained.state_dict() if ".bottom_up." in name else before)[name])


def test_load_detector_refuses_a_backbone():
    assert "is not in the checkpoint" in get_error(
        build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT), make_checkpoint("resnet18"), load_detector
    )


def test_load_detector_refuses_another_input_format():
    saved_detector(FPN, resnet_keys(18), TORCHVISION_INPUT)
    write_checkpoint(read_checkpoint("model_final.pth"), "own.pth", "ssql_det")
    checkpoint = read_checkpoint("own.pth")
    metadata = Metadata(MSRA, False, is_input_known=True)
    other = Checkpoint(checkpoint.architecture, checkpoint.tensors, metadata, detector=checkpoint.detector)
    assert "set INPUT.FORMAT BGR MODEL.PIXEL_MEAN [103.53, " in get_error(
        build_detector(FPN, resnet_keys(18), TORCHVISION_INPUT), other, load_detector
    )
