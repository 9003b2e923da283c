"""The inference graph in torch is the engine's inference, for every kind of detector; other parts are named."""

import pytest
import torch
from support.deploy.detectors import KINDS, make_detector
from support.detect.configs import random_images
from torch import nn

from ssql_det import d2
from ssql_det.core.errors import UserError
from ssql_det.deploy.exact_selection import exact_selection
from ssql_det.deploy.graph import DetectorGraph, check_supported
from ssql_det.deploy.tracing import make_traceable

WITHOUT_DETECTIONS = ("no region", "no detection")
FIELDS = ("pred_boxes", "scores", "pred_classes", "pred_masks")


@torch.no_grad()
def run_engine(model, inputs):
    (found,) = model.inference([inputs], do_postprocess=False)
    fields = [found.get(name) for name in FIELDS if found.has(name)]
    return [fields[0].tensor, *fields[1:3], *(masks[:, 0] for masks in fields[3:])]


@torch.no_grad()
def run_graph(model, inputs):
    return DetectorGraph(model)(inputs["image"].permute(1, 2, 0).contiguous())


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_the_engines_inference(kind):
    _, model = make_detector(kind)
    for inputs in random_images(3, sides=((90, 96), (33, 70), (64, 131)), seed=1):
        with exact_selection():
            expected, found = run_engine(model, inputs), run_graph(model, inputs)
        assert (len(expected[0]) == 0) == (kind in WITHOUT_DETECTIONS)
        torch.testing.assert_close(found, tuple(expected), rtol=0, atol=1e-5)
        assert len(found) == len(DetectorGraph(model).output_names)
        assert bool((found[1][1:] <= found[1][:-1]).all())


class CoarseFirst(nn.Module):
    """An RPN head that prefers coarse levels."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, maps):
        logits, deltas = self.head(maps)
        return [each + 9.0 * level for level, each in enumerate(logits)], deltas


@pytest.mark.parametrize("kind", ["C4", "FPN with masks"])
def test_of_equal_scores_the_same_are_suppressed(kind):
    _, model = make_detector(kind, **{"MODEL.RPN.POST_NMS_TOPK_TEST": 300})
    model.proposal_generator.rpn_head = CoarseFirst(model.proposal_generator.rpn_head)
    nn.init.zeros_(model.roi_heads.box_predictor.cls_score.weight)
    model.roi_heads.box_predictor.cls_score.bias.data[3] = 50.0  # a probability of exactly 1 for all regions
    (inputs,) = random_images(1, sides=((300, 400),))
    with exact_selection():
        expected, found = run_engine(model, inputs), run_graph(model, inputs)
    assert (expected[1] == 1).sum() > 5
    torch.testing.assert_close(found, tuple(expected), rtol=0, atol=1e-5)


def test_a_single_pixel():
    _, model = make_detector("C4 with masks")
    (inputs,) = random_images(1, sides=((1, 1),))
    with exact_selection():
        torch.testing.assert_close(run_graph(model, inputs), tuple(run_engine(model, inputs)), rtol=0, atol=1e-6)


def test_what_is_traced_is_a_copy_without_norms_that_computes_the_same():
    _, model = make_detector("FPN with masks")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    traceable = make_traceable(model)
    assert model.training
    assert not traceable.training
    assert not [each for each in traceable.modules() if isinstance(each, nn.BatchNorm2d)]
    assert all("forward" not in vars(each) for each in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    (inputs,) = random_images(1)
    with exact_selection():
        expected, found = run_engine(model.eval(), inputs), run_graph(traceable, inputs)
    torch.testing.assert_close(found, tuple(expected), rtol=1e-4, atol=1e-4)


def test_group_norms_compute_the_same():
    norm = nn.GroupNorm(2, 6)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 6, 4, 5)
    torch.testing.assert_close(make_traceable(nn.Sequential(norm))(x), norm(x), rtol=0, atol=0)


def test_a_conv_that_computes_something_else_is_left_alone():
    class Doubling(d2.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    conv, x = nn.Sequential(Doubling(3, 2, 1, norm=nn.BatchNorm2d(2))).eval(), torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(make_traceable(conv)(x), conv(x), rtol=0, atol=0)


# ---- parts that are not supported


def as_subclass(path, name, **methods):
    """Makes the part at ``path`` one of another class."""

    def change(model):
        part = model.get_submodule(path)
        part.__class__ = type(name, (type(part),), methods)

    return change


def setting(path, attribute, value):
    return lambda model: setattr(model.get_submodule(path), attribute, value)


def pool_otherwise(pooler):
    def change(model):
        model.get_submodule(pooler).level_poolers[1] = RoIPool()

    return change


class RoIPool(nn.Module):
    """Named as torchvision's."""


class DeformConv(nn.Conv2d):
    """Named as Detectron2's."""


def deform(model):
    model.backbone.bottom_up.res3[0].conv2 = DeformConv(3, 3, 3)


def rotate(model):
    model.roi_heads.box_predictor.box2box_transform.weights = (10.0, 10.0, 5.0, 5.0, 1.0)


UNSUPPORTED = {
    "another architecture": (
        as_subclass("", "PanopticFPN", inference=lambda self, inputs: None),
        "the architecture PanopticFPN (MODEL.META_ARCHITECTURE) cannot",
    ),
    "cascade": (
        as_subclass("roi_heads", "CascadeROIHeads", _forward_box=lambda self, features, proposals: None),
        "the ROI heads CascadeROIHeads (MODEL.ROI_HEADS.NAME) cannot be exported; supported are Faster and Mask R-CNN",
    ),
    "keypoints": (
        setting("roi_heads", "keypoint_on", True),
        "keypoints cannot be exported; set MODEL.KEYPOINT_ON False",
    ),
    "rotated proposals": (
        as_subclass("proposal_generator", "RRPN"),
        "the proposal generator RRPN (MODEL.PROPOSAL_GENERATOR.NAME) cannot",
    ),
    "no proposals": (
        setting("", "proposal_generator", None),
        "the proposal generator none (MODEL.PROPOSAL_GENERATOR.NAME) cannot",
    ),
    "rotated anchors": (
        as_subclass("proposal_generator.anchor_generator", "RotatedAnchorGenerator"),
        "the anchor generator RotatedAnchorGenerator (MODEL.ANCHOR_GENERATOR.NAME)",
    ),
    "rotated boxes": (rotate, "(MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS) cannot be exported"),
    "another predictor": (
        as_subclass("roi_heads.box_predictor", "Calibrated", predict_probs=lambda self, predictions, proposals: None),
        "the box predictor Calibrated cannot be exported",
    ),
    "box pooling": (pool_otherwise("roi_heads.box_pooler"), "the pooler RoIPool (MODEL.ROI_BOX_HEAD.POOLER_TYPE)"),
    "mask pooling": (pool_otherwise("roi_heads.mask_pooler"), "the pooler RoIPool (MODEL.ROI_MASK_HEAD.POOLER_TYPE)"),
    "no mask pooling": (
        setting("roi_heads", "mask_pooler", None),
        "the pooler none (MODEL.ROI_MASK_HEAD.POOLER_TYPE) cannot",
    ),
    "another mask head": (
        setting("roi_heads", "mask_head", nn.ReLU()),
        "the mask head ReLU (MODEL.ROI_MASK_HEAD.NAME) cannot",
    ),
    "deformable": (deform, "the layer DeformConv (MODEL.RESNETS.DEFORM_ON_PER_STAGE) cannot"),
    "nothing": (
        setting("roi_heads.box_predictor", "test_topk_per_image", 0),
        "TEST.DETECTIONS_PER_IMAGE is 0, so that nothing is detected; set it to 1 or more, or -1",
    ),
}


@pytest.mark.parametrize(("change", "said"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_part_that_is_not_supported_is_named(change, said):
    _, model = make_detector("FPN with masks")
    check_supported(model)
    change(model)
    with pytest.raises(UserError) as refused:
        check_supported(model)
    assert said in str(refused.value)


def test_squares_and_what_is_no_detector_are_refused(monkeypatch):
    _, model = make_detector("FPN")
    monkeypatch.setattr(type(model.backbone), "padding_constraints", {"square_size": 1024})
    with pytest.raises(UserError, match="a backbone that pads images to squares cannot be exported"):
        check_supported(model)
    with pytest.raises(UserError, match=r"the architecture ReLU \(MODEL\.META_ARCHITECTURE\) cannot be exported"):
        check_supported(nn.ReLU())
