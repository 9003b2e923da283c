"""The blocks of detectors: they cover the points, and run alone they give what they give in the detector."""

from collections import defaultdict
from contextlib import ExitStack

import pytest
import torch
from support.detect.configs import C4, FPN, config, random_images, randomize_norms

from ssql_det.detect import detector_points
from ssql_det.detect.blocks import detector_blocks
from ssql_det.detect.detector import build_detector
from ssql_det.detect.distillation import DistillationLoss
from ssql_det.detect.quantized_evaluation import calibrate_detector
from ssql_det.detect.replay import record_proposals, run_with_recorded_proposals
from ssql_det.ptq import METHODS, reconstruct
from ssql_det.ptq.blocks import list_tensors, recording_inputs
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.points import select_inside

LOW = Bits(2, 4)
VARIANTS = {
    "C4": (C4, {}),
    "C4 with masks": (C4, {"MODEL.MASK_ON": True}),
    "FPN": (FPN, {}),
    "FPN with the average": (FPN, {"MODEL.FPN.FUSE_TYPE": "avg"}),
}


def build(name):
    file, keys = VARIANTS[name]
    torch.manual_seed(2)
    model = randomize_norms(build_detector(config(file, **keys)))
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        layer.weight.data *= 20
    return model


def test_the_blocks_written_out():
    assert [block.name for block in detector_blocks(build("C4"), "all")] == [
        *("backbone.stem", "backbone.res2.0", "backbone.res3.0", "backbone.res4.0"),
        *("proposal_generator.rpn_head", "roi_heads.res5.0", "roi_heads.box_head"),
    ]
    levels = [f"backbone.fpn_output{level}" for level in (5, 4, 3, 2)]
    backbone = [f"backbone.bottom_up.{name}" for name in ("stem", "res2.0", "res3.0", "res4.0", "res5.0")]
    rest = ["proposal_generator.rpn_head", "roi_heads.box_head", "roi_heads.mask_head"]
    for scope, expected in (
        ("backbone", backbone),
        ("backbone+neck", backbone + levels),
        ("all", backbone + levels + rest),
    ):
        assert [block.name for block in detector_blocks(build("FPN"), scope)] == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_each_weight_is_in_one_block(name):
    model = build(name)
    for scope in ("backbone", "all"):
        points = {point: 2 for point in detector_points(model, scope) if point.is_weight}
        blocks = detector_blocks(model, scope)
        assert sorted(p.key for block in blocks for p in select_inside(points, block.modules)) == sorted(
            point.key for point in points
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_block_alone_gives_what_it_gives_in_the_detector(name):
    """Also each layer alone; in float, and quantized with all points inside the block."""
    model = build(name)
    quantization = Quantization(model, detector_points(model, "all"))
    quantization.calibrate([random_images(2, seed=9)], forward=lambda model, batch: model(batch))
    [recorded] = record_proposals(model, [random_images(2)])
    blocks = detector_blocks(model, "all")
    layers = [
        layer for block in blocks for layer in block.split_layers([p.path for p in quantization.points if p.is_weight])
    ]
    for bits in (Bits.FP, LOW):
        outputs = defaultdict(list)

        def keep(module, inputs, output, outputs=outputs):
            outputs[module] += [x.clone() for x in list_tensors(output)]

        last_modules = {model.get_submodule(block.modules[-1]) for block in (*blocks, *layers)}
        with torch.no_grad(), quantization.applying(bits), ExitStack() as stack:
            for module in last_modules:
                stack.callback(module.register_forward_hook(keep).remove)
            run_with_recorded_proposals(model, recorded)
        for block in (*blocks, *layers):
            with recording_inputs(model, block) as record, torch.no_grad(), quantization.applying(bits):
                inputs = record(run_with_recorded_proposals, recorded)
            with torch.no_grad(), quantization.applying(bits, inside=block.modules):
                found = list_tensors(block.run(model, inputs))
            expected = outputs[model.get_submodule(block.modules[-1])]
            assert len(expected) >= len(found) > 0
            for x, y in zip(found, expected, strict=False):
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("C4", "weight=qdrop:4, act=lsq"),
        ("C4", "weight=adaround:2"),
        ("C4", "weight=brecq:2, act=lsq, placement=integer"),
        ("C4", "weight=brecq-fisher:2, act=lsq"),
        ("FPN", "weight=brecq-fisher:2, act=lsq, placement=integer"),
    ],
)
def test_a_detector_is_reconstructed(name, scheme):
    model = build(name)
    scheme = Scheme.parse(scheme)
    quantization = Quantization(model, detector_points(model, "all", scheme.placement), scheme)
    calibrate_detector(quantization, [[image] for image in random_images(2, seed=9)])
    recorded = record_proposals(model, [[image] for image in random_images(4)])
    method, blocks = METHODS.get(scheme.weight.partition(":")[0])(), detector_blocks(model, "all")
    loss = DistillationLoss(model, recorded)
    results = reconstruct(
        quantization, LOW, None, blocks, recorded, run_with_recorded_proposals, method, compute_loss=loss
    )
    assert len(results) >= len(blocks)
    assert not any(each.has_no_gradient for each in results)
    learned = quantization.repairs[str(LOW)].quantizers
    assert {point for point in learned if point.is_weight} == {p for p in quantization.points if p.is_weight}
    with quantization.applying(LOW), torch.no_grad():
        model(random_images(1))
