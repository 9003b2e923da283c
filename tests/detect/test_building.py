"""Detectors are built from configs, and all tensors of a pretrained backbone are loaded into them."""

import pytest
import torch
from support.detect.configs import C4, CONFIGS, FPN, config, full_config, random_images, randomize_norms
from torch import nn

from ssql_det.backbones import build_backbone
from ssql_det.core.errors import UserError
from ssql_det.d2 import GeneralizedRCNN
from ssql_det.detect.detector import build_detector, load_pretrained_detector, load_trained_detector

STAGES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
SMALL_HEADS = {"MODEL__FPN__OUT_CHANNELS": 16, "MODEL__ROI_BOX_HEAD__FC_DIM": 16, "MODEL__ROI_MASK_HEAD__CONV_DIM": 16}
DETECTORS = {  # by backbone: of a C4 detector, of an FPN
    "resnet18": ("voc_r18_c4.yaml", "coco_mask_r18_fpn.yaml"),
    "resnet34": ("voc_r34_c4.yaml", "coco_mask_r34_fpn.yaml"),
    "resnet50": ("voc_r50_c4.yaml", "coco_mask_r50_fpn.yaml"),
    "narrow_resnet": (C4, FPN),
}


def backbone(name):
    torch.manual_seed(0)
    return randomize_norms(build_backbone(name).module)


def save_backbone(name, folder):
    """Save a backbone's weights in torchvision's layout."""
    network = backbone(name)
    path = folder / f"{name}.pth"
    torch.save(network.state_dict(), path)
    return network, path


def detector_config(name, kind, **keys):
    c4, fpn = DETECTORS[name]
    return config(c4, **keys) if kind == "C4" else config(fpn, **keys, **SMALL_HEADS)


def detector_name(name, kind):
    """The name in a detector of a tensor of torchvision's ResNet."""
    first, _, rest = name.partition(".")
    root = "backbone." if kind == "C4" else "backbone.bottom_up."
    if first == "conv1":
        return f"{root}stem.conv1.{rest}"
    if first == "bn1":
        return f"{root}stem.conv1.norm.{rest}"
    root = "roi_heads." if kind == "C4" and first == "layer4" else root
    rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for digit in "123":
        rest = rest.replace(f"bn{digit}", f"conv{digit}.norm")
    return f"{root}{STAGES[first]}.{rest}"


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_config_builds_a_working_detector(name):
    few = {"MODEL__RPN__PRE_NMS_TOPK_TEST": 20, "MODEL__RPN__POST_NMS_TOPK_TEST": 4}
    cfg = full_config(name, **few)
    detector = build_detector(cfg).eval()
    assert isinstance(detector, GeneralizedRCNN)
    with torch.no_grad():
        (answer,) = detector(random_images(1))
    assert answer["instances"].has("pred_masks") == cfg.MODEL.MASK_ON
    assert detector.roi_heads.box_predictor.cls_score.out_features == cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1
    assert all(parameter.requires_grad for parameter in detector.parameters())  # FREEZE_AT 0, no FrozenBN


def test_an_invalid_channel_order_is_refused():
    with pytest.raises(UserError, match=r"INPUT\.FORMAT must be 'RGB' or 'BGR', got 'GRB'"):
        build_detector(config(C4, INPUT__FORMAT="GRB"))


@pytest.mark.parametrize("kind", ["C4", "FPN"])
@pytest.mark.parametrize("name", DETECTORS)
def test_all_tensors_of_a_backbone_are_loaded(name, kind, tmp_path):
    network, path = save_backbone(name, tmp_path)
    cfg = detector_config(name, kind, MODEL__WEIGHTS=path)
    torch.manual_seed(1)
    fresh = build_detector(cfg).state_dict()
    torch.manual_seed(1)
    detector, checkpoint, coverage = load_pretrained_detector(cfg)
    state = detector.state_dict()
    given = {detector_name(key, kind): value for key, value in network.state_dict().items()}
    assert all(torch.equal(state[key], value) for key, value in given.items())
    assert all(torch.equal(state[key], value) for key, value in fresh.items() if key not in given)
    assert checkpoint.architecture.name == name

    found = coverage.to_dict()
    assert found["percent"] == 100
    assert set(found["used"]) == set(given)
    assert set(found["left_out"]) == set(fresh) - set(given)
    assert not any(found[each] for each in ("unmatched", "missing", "wrong"))


def test_res5_roi_heads_do_not_fit_a_shallow_backbone(tmp_path):
    _, path = save_backbone("resnet18", tmp_path)
    keys = {"MODEL__ROI_HEADS__NAME": "Res5ROIHeads", "MODEL__WEIGHTS": path}
    with pytest.raises(UserError, match=r"does not fit this network.*Res5ROIHeads has bottlenecks at any depth"):
        load_pretrained_detector(detector_config("resnet18", "C4", **keys))


def test_res5_roi_heads_fit_a_deep_backbone(tmp_path):
    _, path = save_backbone("resnet50", tmp_path)
    keys = {"MODEL__ROI_HEADS__NAME": "Res5ROIHeads", "MODEL__WEIGHTS": path}
    *_, coverage = load_pretrained_detector(detector_config("resnet50", "C4", **keys))
    assert coverage.percent == 100


@pytest.mark.parametrize(("given", "wanted"), [(C4, FPN), (FPN, C4)])
def test_a_detector_of_the_other_kind_is_refused(given, wanted, tmp_path):
    torch.save({"model": build_detector(config(given)).state_dict()}, tmp_path / "given.pth")
    with pytest.raises(UserError, match="one of the two is a C4 detector, the other has an FPN"):
        load_trained_detector(config(wanted, MODEL__WEIGHTS=tmp_path / "given.pth"))


@pytest.mark.parametrize(
    ("given", "wanted", "kind"),
    [
        ("resnet34", "resnet18", "C4"),
        ("resnet18", "resnet34", "FPN"),
        ("narrow_resnet", "resnet50", "FPN"),
    ],
)
def test_a_backbone_of_another_depth_is_refused(given, wanted, kind, tmp_path):
    _, path = save_backbone(given, tmp_path)
    with pytest.raises(UserError, match=f"is a {given} and does not fit this network"):
        load_pretrained_detector(detector_config(wanted, kind, MODEL__WEIGHTS=path))


@pytest.mark.parametrize(
    ("name", "blocks", "norm", "kind"),
    [
        ("resnet18", 2, "naiveSyncBN", nn.BatchNorm2d),
        ("resnet50", 3, "naiveSyncBN", nn.BatchNorm2d),
        ("narrow_resnet", 1, "naiveSyncBN", nn.BatchNorm2d),
        ("narrow_resnet", 1, "", None),
    ],
)
def test_the_extra_norm_follows_res5(name, blocks, norm, kind):
    cfg = detector_config(name, "C4", SSQL_DET__EXTRA_NORM=norm)
    torch.manual_seed(0)
    head = randomize_norms(build_detector(cfg)).roi_heads
    children = dict(head.res5.named_children())
    assert list(children) == [str(index) for index in range(blocks)] + ["norm"] * bool(norm)
    x = torch.rand(1, head.res5[0].conv1.in_channels, 6, 6)
    with torch.no_grad():
        expected = head.res5[:blocks](x)
        assert expected.shape[2:] == (3, 3)
        if norm:
            assert isinstance(children["norm"], kind)
            expected = children["norm"](expected)
            assert expected.min() < 0  # no ReLU behind it
        assert torch.equal(head.res5(x), expected)
    assert head.box_predictor.cls_score.in_features == expected.shape[1]


def test_the_extra_norm_has_the_type_of_the_config():
    kinds = {
        norm: build_detector(config(C4, SSQL_DET__EXTRA_NORM=norm)).roi_heads.res5.norm for norm in ("BN", "FrozenBN")
    }
    assert [type(kind).__name__ for kind in kinds.values()] == ["BatchNorm2d", "FrozenBatchNorm2d"]


@pytest.mark.parametrize("kind", ["C4", "FPN"])
def test_a_narrow_detector_has_the_features_of_the_pretrained_network(kind, tmp_path):
    network, path = save_backbone("narrow_resnet", tmp_path)
    detector, *_ = load_pretrained_detector(detector_config("narrow_resnet", kind, MODEL__WEIGHTS=path))
    network, detector = network.double(), detector.double().eval()
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        x = network.maxpool(network.act1(network.bn1(network.conv1(images))))
        expected = {}
        for stage, name in STAGES.items():
            expected[name] = x = getattr(network, stage)(x)
        if kind == "FPN":
            got = detector.backbone.bottom_up(images)
        else:
            got = detector.backbone(images)
            got["res5"] = detector.roi_heads.res5[0](got["res4"])
    assert set(got) <= set(expected)
    assert {"res4", "res5"} <= set(got)
    for name, features in got.items():
        assert features.shape == expected[name].shape
        torch.testing.assert_close(features, expected[name], rtol=1e-5, atol=1e-5)


def test_a_backbone_alone_is_not_evaluated(tmp_path):
    _, path = save_backbone("resnet18", tmp_path)
    with pytest.raises(UserError, match=r"resnet18\.pth has only a backbone; train a detector"):
        load_trained_detector(detector_config("resnet18", "C4", MODEL__WEIGHTS=path))
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS is empty"):
        load_trained_detector(detector_config("resnet18", "C4"))


def test_all_tensors_of_a_detector_are_loaded(tmp_path):
    cfg = config(C4, MODEL__WEIGHTS=tmp_path / "whole.pth", out=tmp_path)
    torch.manual_seed(0)
    detector = randomize_norms(build_detector(cfg))
    torch.save({"model": detector.state_dict()}, tmp_path / "whole.pth")
    again, checkpoint = load_trained_detector(cfg)
    assert checkpoint.display_name == "whole.pth"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in detector.state_dict().items())


def test_a_config_that_fails_the_engines_checks_is_a_user_error():
    with pytest.raises(UserError, match=r"this config does not describe a detector.*RES2_OUT_CHANNELS = 64"):
        build_detector(config("voc_r18_c4.yaml", MODEL__RESNETS__RES2_OUT_CHANNELS=256))
