"""Float and quantized detection equal a reference that is written out layer by layer, in float64."""

import functools

import pytest
import torch
from support.detect.configs import C4, FPN, config, random_images, randomize_norms, select_boxes_in_float32
from support.detect.detector_by_hand import Quantizer, by_hand, with_weights_on_grid
from support.reference_quantizer import RangeRecorder

from ssql_det.detect import detector_points
from ssql_det.detect.detector import build_detector
from ssql_det.quant import Bits, Quantization

THIN = {"DEPTH": 50, "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4}
BOTTLENECKS = {f"MODEL__RESNETS__{key}": value for key, value in THIN.items()} | {"MODEL__RESNETS__NORM": "BN"}
MASKS, NO_NORM = {"MODEL__MASK_ON": True}, {"SSQL_DET__EXTRA_NORM": ""}
FEW = {"MODEL__RPN__POST_NMS_TOPK_TEST": 8, "TEST__DETECTIONS_PER_IMAGE": 6}
WIDE_FPN = {"MODEL__FPN__OUT_CHANNELS": 16, "MODEL__ROI_BOX_HEAD__FC_DIM": 24, "MODEL__ROI_MASK_HEAD__CONV_DIM": 12}
DETECTORS = {
    "C4": (C4, NO_NORM),
    "C4, norm": (C4, {}),
    "C4, masks": (C4, NO_NORM | MASKS),
    "C4, norm, masks, bottlenecks": (
        C4,
        MASKS | BOTTLENECKS | {"MODEL__BACKBONE__NAME": "build_resnet_backbone"},
    ),
    "FPN": (FPN, WIDE_FPN | {"MODEL__MASK_ON": False}),
    "FPN, masks": (FPN, WIDE_FPN),
    "FPN, masks, bottlenecks": (
        FPN,
        WIDE_FPN | BOTTLENECKS | {"MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone", "MODEL__FPN__NORM": ""},
    ),
}


def record_intermediates(model):
    """Hooks that record the detector's intermediate tensors, by the same names as ``by_hand``."""
    intermediates = {}

    def hook_outputs(path, *names):
        def record(module, args, output):
            parts = output if len(names) > 1 else (output,)
            intermediates.update(zip(names, parts, strict=True))

        return model.get_submodule(path).register_forward_hook(record)

    hooks = [
        hook_outputs("backbone", "features"),
        hook_outputs("proposal_generator.rpn_head", "rpn logits", "rpn deltas"),
        hook_outputs("roi_heads.box_predictor", "scores", "boxes"),
    ]
    if hasattr(model.roi_heads, "mask_head"):
        hooks.append(hook_outputs("roi_heads.mask_head.predictor", "masks"))
    return intermediates, hooks


@functools.cache
def detector(case):
    """A detector, images, and the ranges of its activations over other images: observed by hand, and by calibration."""
    name, keys = DETECTORS[case]
    torch.manual_seed(2)
    model = randomize_norms(build_detector(config(name, **FEW, **keys)))
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        layer.weight.data *= 20  # so that the detections depend on the image
    model = select_boxes_in_float32(model.double())
    calibration = [random_images(2, seed=seed) for seed in (10, 11)]
    observer = RangeRecorder()
    for batch in calibration:
        by_hand(model, batch, observer)
    quantizations = {scope: Quantization(model, detector_points(model, scope)) for scope in SCOPES}
    for quantization in quantizations.values():
        quantization.calibrate(calibration, forward=lambda network, batch: network(batch))
    return model, random_images(3, seed=12), observer.ranges, quantizations


SCOPES = ("backbone", "all")


def assert_close(got, expected, what):
    assert got.shape == expected.shape, what
    assert got.dtype == expected.dtype, what
    if got.numel():
        worst = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert worst <= 1e-5, f"{what}: {float(worst):.1e}"


def assert_same_detections(got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        ours = ours["instances"]
        assert len(ours) == len(theirs)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        assert_close(ours.scores, theirs.scores, "scores of detections")
        assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, "boxes of detections")
        assert ours.has("pred_masks") == theirs.has("pred_masks")
        if ours.has("pred_masks"):
            assert torch.equal(ours.pred_masks, theirs.pred_masks)


def assert_same_intermediates(got, expected):
    assert set(got) == set(expected)
    for what, theirs in expected.items():
        ours = got[what]
        ours = list(ours.values()) if isinstance(ours, dict) else ours
        for a, b in zip(*([x] if torch.is_tensor(x) else x for x in (ours, theirs)), strict=True):
            assert_close(a, b, what)


def run(model, batch):
    intermediates, hooks = record_intermediates(model)
    with torch.no_grad():
        outputs = model(batch)
    for hook in hooks:
        hook.remove()
    return outputs, intermediates


@pytest.mark.parametrize("case", DETECTORS)
def test_the_float_reference_equals_the_detector(case):
    model, batch, _, _ = detector(case)
    outputs, intermediates = run(model, batch)
    expected, expected_intermediates = by_hand(model, batch, lambda place, x, bits=None: x)
    assert all(len(each) for each in expected)
    assert_same_intermediates(intermediates, expected_intermediates)
    assert_same_detections(outputs, expected)


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("case", DETECTORS)
def test_the_quantized_detector_equals_the_reference(case, scope, width):
    model, batch, ends, quantizations = detector(case)
    with quantizations[scope].at(Bits(width, width)):
        outputs, intermediates = run(model, batch)
    expected, expected_intermediates = by_hand(
        with_weights_on_grid(model, width, scope), batch, Quantizer(ends, width, scope)
    )
    assert_same_intermediates(intermediates, expected_intermediates)
    assert_same_detections(outputs, expected)


@pytest.mark.parametrize("case", ["C4, norm, masks, bottlenecks", "FPN, masks"])
@pytest.mark.parametrize(("weight", "act"), [(2, 8), (8, 4)])
def test_weights_and_activations_have_different_bit_widths(case, weight, act):
    model, batch, ends, quantizations = detector(case)
    with quantizations["all"].at(Bits(weight, act)):
        outputs, intermediates = run(model, batch)
    expected, expected_intermediates = by_hand(
        with_weights_on_grid(model, weight, "all"), batch, Quantizer(ends, act, "all")
    )
    assert_same_intermediates(intermediates, expected_intermediates)
    assert_same_detections(outputs, expected)


def test_every_bit_width_and_scope_gives_different_scores():
    model, batch, _, quantizations = detector("FPN, masks")
    scores = [run(model, batch)[1]["scores"]]
    for scope in SCOPES:
        for width in (8, 6, 5, 4):
            with quantizations[scope].at(Bits(width, width)):
                scores.append(run(model, batch)[1]["scores"])
    assert not any(torch.equal(a, b) for index, a in enumerate(scores) for b in scores[:index])
