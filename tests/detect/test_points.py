"""The quantization points of detectors, written out."""

from dataclasses import replace

import pytest
import torch
import torchvision
from support.detect.configs import C4, FPN, config, random_images, randomize_norms

from ssql_det.core.errors import UserError
from ssql_det.detect import detector_points
from ssql_det.detect.detector import build_detector
from ssql_det.detect.quantized_evaluation import calibrate_detector
from ssql_det.quant import Bits, Quantization, Scheme, quant_points

# "path side", "@8" where it stays at 8 bits, "from 0" where the range goes down to zero.
C4_BACKBONE = """
backbone.stem.conv1 weight @8
backbone.stem output @8 from 0
backbone.res2.0.conv1 weight
backbone.res2.0.conv2 input
backbone.res2.0.conv2 weight
backbone.res2.0 output
backbone.res3.0.shortcut weight
backbone.res3.0.conv1 weight
backbone.res3.0.conv2 input
backbone.res3.0.conv2 weight
backbone.res3.0 output
backbone.res4.0.shortcut weight
backbone.res4.0.conv1 weight
backbone.res4.0.conv2 input
backbone.res4.0.conv2 weight
backbone.res4.0 output
roi_heads.res5.0 input
roi_heads.res5.0.shortcut weight
roi_heads.res5.0.conv1 weight
roi_heads.res5.0.conv2 input
roi_heads.res5.0.conv2 weight
roi_heads.res5.0 output
"""
RPN_PREDICTORS = """
proposal_generator.rpn_head.objectness_logits input @8
proposal_generator.rpn_head.objectness_logits weight @8
proposal_generator.rpn_head.anchor_deltas input @8
proposal_generator.rpn_head.anchor_deltas weight @8
"""
BOX_PREDICTORS = """
roi_heads.box_predictor.cls_score input @8
roi_heads.box_predictor.cls_score weight @8
roi_heads.box_predictor.bbox_pred input @8
roi_heads.box_predictor.bbox_pred weight @8
"""
MASK_PREDICTOR = """
roi_heads.mask_head.predictor input @8
roi_heads.mask_head.predictor weight @8
"""
C4_REST = "proposal_generator.rpn_head.conv weight" + RPN_PREDICTORS + BOX_PREDICTORS
C4_MASK = "roi_heads.mask_head.deconv weight" + MASK_PREDICTOR
C4_MASK_BEHIND_A_NORM = "roi_heads.mask_head.deconv input\n" + C4_MASK

FPN_BACKBONE = """
backbone.bottom_up.stem.conv1 weight @8
backbone.bottom_up.stem output @8 from 0
backbone.bottom_up.res2.0.conv1 weight
backbone.bottom_up.res2.0.conv2 input
backbone.bottom_up.res2.0.conv2 weight
backbone.bottom_up.res2.0 output
backbone.bottom_up.res3.0.shortcut weight
backbone.bottom_up.res3.0.conv1 weight
backbone.bottom_up.res3.0.conv2 input
backbone.bottom_up.res3.0.conv2 weight
backbone.bottom_up.res3.0 output
backbone.bottom_up.res4.0.shortcut weight
backbone.bottom_up.res4.0.conv1 weight
backbone.bottom_up.res4.0.conv2 input
backbone.bottom_up.res4.0.conv2 weight
backbone.bottom_up.res4.0 output
backbone.bottom_up.res5.0.shortcut weight
backbone.bottom_up.res5.0.conv1 weight
backbone.bottom_up.res5.0.conv2 input
backbone.bottom_up.res5.0.conv2 weight
backbone.bottom_up.res5.0 output
"""
FPN_REST = """
backbone.fpn_lateral2 weight
backbone.fpn_output2 input
backbone.fpn_output2 weight
backbone.fpn_lateral3 weight
backbone.fpn_output3 input
backbone.fpn_output3 weight
backbone.fpn_lateral4 weight
backbone.fpn_output4 input
backbone.fpn_output4 weight
backbone.fpn_lateral5 weight
backbone.fpn_output5 input
backbone.fpn_output5 weight
proposal_generator.rpn_head.conv input
proposal_generator.rpn_head.conv weight
roi_heads.box_head.fc1 input
roi_heads.box_head.fc1 weight
roi_heads.box_head.fc2 input
roi_heads.box_head.fc2 weight
"""
FPN_REST += RPN_PREDICTORS + BOX_PREDICTORS
FPN_MASK = """
roi_heads.mask_head.mask_fcn1 input
roi_heads.mask_head.mask_fcn1 weight
roi_heads.mask_head.mask_fcn2 input
roi_heads.mask_head.mask_fcn2 weight
roi_heads.mask_head.deconv input
roi_heads.mask_head.deconv weight
"""
FPN_MASK += MASK_PREDICTOR

NO_NORM, MASKS = {"SSQL_DET__EXTRA_NORM": ""}, {"MODEL__MASK_ON": True}
CASES = {
    "C4": (C4, NO_NORM, C4_BACKBONE, C4_REST),
    "C4, norm": (C4, {}, C4_BACKBONE, C4_REST),
    "C4, masks": (C4, NO_NORM | MASKS, C4_BACKBONE, C4_REST + C4_MASK),
    "C4, norm, masks": (C4, MASKS, C4_BACKBONE, C4_REST + C4_MASK_BEHIND_A_NORM),
    "FPN": (FPN, {"MODEL__MASK_ON": False}, FPN_BACKBONE, FPN_REST),
    "FPN, masks": (FPN, MASKS, FPN_BACKBONE, FPN_REST + FPN_MASK),
}


def format_point(point):
    bits = "" if point.bits is None else f" @{point.bits}"
    return f"{point.path} {point.side.value}{bits}{' from 0' * point.include_zero}"


def sort_lines(text):
    return sorted(line for line in text.splitlines() if line)


def format_points(model, scope):
    return sorted(map(format_point, detector_points(model, scope)))


@pytest.mark.parametrize("case", CASES)
def test_points_are_those_of_the_table(case):
    name, keys, backbone, rest = CASES[case]
    model = build_detector(config(name, **keys))
    assert format_points(model, "backbone") == sort_lines(backbone)
    assert format_points(model, "all") == sort_lines(backbone + rest)


def test_a_head_of_bottlenecks_has_points_before_both_later_convs():
    thin = {"DEPTH": 50, "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4, "NORM": "BN"}
    model = build_detector(
        config("voc_r18_c4.yaml", **{f"MODEL__RESNETS__{key}": value for key, value in thin.items()})
    )
    of_head = [line for line in format_points(model, "backbone") if line.startswith("roi_heads.")]
    first = """
roi_heads.res5.0 input
roi_heads.res5.0.shortcut weight
"""
    each = """
roi_heads.res5.{n}.conv1 weight
roi_heads.res5.{n}.conv2 input
roi_heads.res5.{n}.conv2 weight
roi_heads.res5.{n}.conv3 input
roi_heads.res5.{n}.conv3 weight
roi_heads.res5.{n} output
"""
    assert of_head == sort_lines(first + "".join(each.format(n=n) for n in range(3)))


def test_only_the_first_layer_of_a_c4_mask_head_reads_res5():
    model = build_detector(config(C4, **NO_NORM, **MASKS, MODEL__ROI_MASK_HEAD__NUM_CONV=2))
    of_masks = [line for line in format_points(model, "all") if ".mask_head." in line]
    assert of_masks == sort_lines(FPN_MASK.replace("roi_heads.mask_head.mask_fcn1 input\n", ""))


def test_a_box_head_with_convs_is_quantized_at_their_inputs():
    model = build_detector(config(FPN, MODEL__ROI_BOX_HEAD__NUM_CONV=1, MODEL__ROI_BOX_HEAD__CONV_DIM=8))
    more = set(format_points(model, "all")) - set(sort_lines(FPN_BACKBONE + FPN_REST + FPN_MASK))
    assert more == {"roi_heads.box_head.conv1 input", "roi_heads.box_head.conv1 weight"}


@pytest.mark.parametrize("name", [C4, FPN])
def test_scope_all_refuses_an_unsupported_layer(name):
    model = build_detector(config(name, MODEL__RPN__CONV_DIMS=[-1, -1]))
    with pytest.raises(
        UserError, match=r"proposal_generator\.rpn_head\.conv\.conv0 has no quantization point \(2 such"
    ):
        detector_points(model, "all")
    assert format_points(model, "backbone") == sort_lines(C4_BACKBONE if name == C4 else FPN_BACKBONE)


def test_an_unknown_scope_is_refused():
    with pytest.raises(UserError, match="the scope must be one of backbone, backbone\\+neck, all; got 'head'"):
        detector_points(build_detector(config(C4)), "head")


def test_per_level_gives_each_level_of_the_rpn_its_own_range():
    model = randomize_norms(build_detector(config(FPN))).eval()
    batches = [[image] for image in random_images(2)]
    published, per_level = (detector_points(model, "all", placement) for placement in ("published", "per-level"))
    rpn = [point for point in per_level if point.path.startswith("proposal_generator") and not point.is_weight]
    assert len(rpn) == 3 * 5
    assert {replace(point, call=None) for point in per_level} == {*published}
    inputs = []
    conv = model.proposal_generator.rpn_head.conv
    with torch.no_grad():
        handle = conv.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
        for batch in batches:
            model.inference(batch)
        handle.remove()
    quantization = Quantization(model, per_level, Scheme.parse("placement=per-level"))
    calibrate_detector(quantization, batches)
    for level in range(5):
        point = next(each for each in rpn if each.path.endswith("rpn_head.conv") and each.call == level)
        seen = inputs[level::5]
        bounds = min(x.min() for x in seen), max(x.max() for x in seen)
        assert quantization[point].observer.range == bounds
    outputs = []
    with torch.no_grad(), quantization.at(Bits(8, 2)):
        handle = conv.register_forward_pre_hook(lambda module, args: outputs.append(args[0].clone()))
        model.inference(batches[0])
        handle.remove()
    assert [len(x.unique()) <= 4 for x in outputs] == [True] * 5  # each on a grid of two bits
    assert len(torch.cat([x.unique() for x in outputs]).unique()) > 8  # not all on the same one


def test_per_level_is_refused_without_an_fpn():
    with pytest.raises(UserError, match="placement=per-level needs an FPN"):
        detector_points(build_detector(config(C4)), "all", "per-level")
    with pytest.raises(UserError, match="has no rules for placement=per-level; use placement=published, integer"):
        quant_points(torchvision.models.resnet18(), "per-level")
    with pytest.raises(UserError, match="adaround learns each layer alone"):
        Scheme.parse("weight=adaround, placement=per-level")
