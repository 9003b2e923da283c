"""Passes with recorded proposals: whatever the bit-width, all layers see the float detector's regions."""

import copy
from contextlib import contextmanager

import pytest
import torch
from support.detect.configs import C4, FPN, config, random_images, randomize_norms
from torch import nn

from ssql_det.core.errors import UserError
from ssql_det.detect import detector_points
from ssql_det.detect.detector import build_detector
from ssql_det.detect.quantized_evaluation import calibrate_detector
from ssql_det.detect.replay import record_proposals, run_with_recorded_proposals
from ssql_det.quant import Bits, Quantization
from ssql_det.quant.hooks import recording_outputs

TWO_BITS = Bits(2, 2)
POOLERS = {C4: ["pooler"], FPN: ["box_pooler", "mask_pooler"]}  # in roi_heads, as the heads below
HEADS = {C4: ["res5", "box_predictor"], FPN: ["box_head", "box_predictor", "mask_head"]}
RPN_OUTPUTS = ["proposal_generator.rpn_head.objectness_logits", "proposal_generator.rpn_head.anchor_deltas"]
HEAD_OUTPUTS = {C4: ["box_predictor.cls_score", "box_predictor.bbox_pred"]}
HEAD_OUTPUTS[FPN] = [*HEAD_OUTPUTS[C4], "mask_head.predictor"]
IMAGES = random_images(3)
BATCHES = [IMAGES[:2], IMAGES[2:]]


def make_detector(name):
    """A detector with random norms, whose detections depend on the image."""
    torch.manual_seed(2)
    model = randomize_norms(build_detector(config(name)))
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        layer.weight.data *= 20
    return model


def calibrate(model):
    quantization = Quantization(model, detector_points(model, "all"))
    calibrate_detector(quantization, [[image] for image in random_images(2, seed=9)])
    return quantization


def observe(model, name, run):
    """The boxes that are pooled, the shapes of the heads' inputs and the heads' outputs during ``run()``."""
    boxes, shapes = [], []
    handles = [
        model.roi_heads.get_submodule(path).register_forward_pre_hook(
            lambda module, args: boxes.extend(each.tensor.clone() for each in args[1])
        )
        for path in POOLERS[name]
    ]
    handles += [
        model.roi_heads.get_submodule(path).register_forward_pre_hook(
            lambda module, args: shapes.append(tuple(args[0].shape))
        )
        for path in HEADS[name]
    ]
    paths = [f"roi_heads.{path}" for path in HEAD_OUTPUTS[name]]
    with recording_outputs(model, paths) as outputs, torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    assert len(outputs) == len(paths)
    return boxes, shapes, outputs


def are_equal(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def list_fields(recorded):
    """The recorded tensors, by what they are."""
    return [
        (index, name, getattr(value, "tensor", value), each.image_size)
        for batch in recorded
        for index, each in enumerate([*batch.proposals, *batch.detections])
        for name, value in each.get_fields().items()
    ]


@contextmanager
def check_record_is_unchanged(recorded):
    before = copy.deepcopy(list_fields(recorded))
    yield
    after = list_fields(recorded)
    assert len(after) == len(before)
    for (*labels, tensor, size), (*labels_before, tensor_before, size_before) in zip(after, before, strict=True):
        assert (labels, size) == (labels_before, size_before)
        assert torch.equal(tensor, tensor_before)


@pytest.mark.parametrize("name", [C4, FPN])
def test_a_quantized_pass_sees_the_float_regions(name):
    model = make_detector(name)
    quantization, recorded = calibrate(model), record_proposals(model, BATCHES)
    for batch, record in zip(BATCHES, recorded, strict=True):
        boxes, shapes, outputs = observe(model, name, lambda batch=batch: model(batch))
        assert all(len(each) for each in boxes)
        with quantization.at(TWO_BITS):
            replayed = observe(model, name, lambda record=record: run_with_recorded_proposals(model, record))
            plain_boxes, *_ = observe(model, name, lambda batch=batch: model(batch))
        assert are_equal(replayed[0], boxes)
        assert replayed[1] == shapes
        assert not any(map(torch.equal, replayed[2], outputs))  # it was quantized
        assert not are_equal(plain_boxes, boxes)


@pytest.mark.parametrize("name", [C4, FPN])
def test_a_replayed_float_pass_equals_the_float_pass(name):
    model = make_detector(name)
    recorded = record_proposals(model, BATCHES)
    for batch, record in zip(BATCHES, recorded, strict=True):
        expected = observe(model, name, lambda batch=batch: model(batch))
        found = observe(model, name, lambda record=record: run_with_recorded_proposals(model, record))
        assert are_equal(found[0], expected[0])
        assert found[1] == expected[1]
        assert are_equal(found[2], expected[2])


@pytest.mark.parametrize("name", [C4, FPN])
def test_replays_do_not_change_the_record(name):
    model = make_detector(name)
    quantization, recorded = calibrate(model), record_proposals(model, BATCHES)
    assert {field for _, field, *_ in list_fields(recorded)} == {
        *("proposal_boxes", "objectness_logits"),
        *("pred_boxes", "scores", "pred_classes"),
    }
    assert not any(tensor.requires_grad for _, _, tensor, _ in list_fields(recorded))
    with check_record_is_unchanged(recorded), quantization.at(TWO_BITS):
        first, second = (
            observe(model, name, lambda: run_with_recorded_proposals(model, recorded[0])) for _ in range(2)
        )
    assert are_equal(first[0] + first[2], second[0] + second[2])


@pytest.mark.parametrize("name", [C4, FPN])
def test_the_rpn_runs_and_calibrations_observe_every_layer(name):
    model = make_detector(name)
    quantization, recorded = calibrate(model), record_proposals(model, BATCHES)
    with torch.no_grad(), recording_outputs(model, RPN_OUTPUTS) as outputs:
        model(BATCHES[0])
    with torch.no_grad(), recording_outputs(model, RPN_OUTPUTS) as replayed, quantization.at(TWO_BITS):
        run_with_recorded_proposals(model, recorded[0])
    assert len(outputs) == len(replayed) > 1
    assert not any(map(torch.equal, outputs, replayed))
    ours, theirs = (Quantization(model, detector_points(model, "all")) for _ in range(2))
    ours.calibrate(recorded, forward=run_with_recorded_proposals)
    theirs.calibrate(BATCHES, forward=lambda model, batch: model(batch))
    found = []
    for each in (ours, theirs):
        with each.at(TWO_BITS), recording_outputs(model, RPN_OUTPUTS) as outputs:
            _, _, head_outputs = observe(model, name, lambda: run_with_recorded_proposals(model, recorded[1]))
        found.append(outputs + head_outputs)
    assert are_equal(*found)


def test_gradients_of_the_heads_reach_the_backbone():
    model = make_detector(FPN)
    (record, *_), quantization = record_proposals(model, BATCHES), calibrate(model)
    stem = model.backbone.bottom_up.stem.conv1.weight
    for path in (*RPN_OUTPUTS, *(f"roi_heads.{path}" for path in HEAD_OUTPUTS[FPN])):
        with quantization.at(Bits(8, 8)), recording_outputs(model, [path]) as outputs:
            run_with_recorded_proposals(model, record)
            (gradient,) = torch.autograd.grad(sum(each.square().sum() for each in outputs), [stem])
        assert gradient.abs().max() > 0, path


def test_the_detector_is_as_before_also_after_an_error():
    model = make_detector(FPN).train()
    recorded = record_proposals(model, BATCHES)
    assert all(module.training for module in model.modules())
    damaged = [[{"image": None}]]
    for fail in (
        lambda: record_proposals(model, damaged),
        lambda: run_with_recorded_proposals(model.eval(), type(recorded[0])(damaged[0], [], [])),
    ):
        with pytest.raises((AttributeError, TypeError)):
            fail()
    assert "inference" not in vars(model.roi_heads.box_predictor)
    assert not model.proposal_generator._forward_hooks


def test_a_network_without_proposals_and_heads_without_detections_are_refused():
    with pytest.raises(UserError, match=r"the proposals and detections of Sequential cannot be recorded: supported"):
        record_proposals(nn.Sequential(), BATCHES)
    model = make_detector(C4)
    (record, *_) = record_proposals(model, BATCHES)
    model.roi_heads.box_predictor = nn.ModuleList([model.roi_heads.box_predictor])  # as in a cascade of heads
    for run in (lambda: record_proposals(model, BATCHES), lambda: run_with_recorded_proposals(model, record)):
        with pytest.raises(UserError, match=r"the proposals and detections of C4ROIHeads cannot be recorded"):
            run()
