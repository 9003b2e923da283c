"""Placement ``integer`` in a detector: its additional points, and the FPN's sums as 8-bit tensors."""

import pytest
import torch
from support.detect.configs import C4, FPN, config

from ssql_det.core.errors import UserError
from ssql_det.detect import detector_points
from ssql_det.detect.detector import build_detector
from ssql_det.quant import Bits, Quantization, Scheme
from ssql_det.quant.tracing import trace_pass


def images():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    return [{"image": image, "height": 64, "width": 96}]


def more(model, scope="all"):
    """The points beyond the published ones, without the common beginning of a backbone's."""
    published = {point.key for point in detector_points(model, scope)}
    points = [point for point in detector_points(model, scope, "integer") if point.key not in published]
    assert all(point.bits == 8 for point in points)
    return [point.key.removeprefix("backbone.").removeprefix("bottom_up.") for point in points]


BACKBONE = [
    "stem.conv1:input",
    "res2.0.conv2:output",
    *("res3.0.conv2:output", "res3.0.shortcut:output"),
    *("res4.0.conv2:output", "res4.0.shortcut:output"),
]
RPN = [f"proposal_generator.rpn_head.{name}:output" for name in ("objectness_logits", "anchor_deltas")]


def test_points_of_a_c4_detector():
    model = build_detector(config(C4))
    res5 = ["roi_heads.res5.0.conv2:output", "roi_heads.res5.0.shortcut:output"]
    assert more(model) == [*BACKBONE, *res5, *RPN]


def test_points_of_an_fpn_detector():
    model = build_detector(config(FPN, MODEL__MASK_ON=True))
    neck = [f"fpn_{kind}{level}:output" for level in (2, 3, 4, 5) for kind in ("lateral", "output")]
    sums = [f"backbone/add#{call}:output" for call in range(3)]
    res5 = ["res5.0.conv2:output", "res5.0.shortcut:output"]
    assert more(model, "backbone+neck") == [*BACKBONE, *res5, *neck, *sums]
    assert more(model) == [*BACKBONE, *res5, *neck, *sums, *RPN, "roi_heads.mask_head.predictor:output"]


def test_scope_backbone_and_neck_needs_an_fpn():
    model = build_detector(config(FPN))
    neck = {point.path for point in detector_points(model, "backbone+neck")}
    neck -= {point.path for point in detector_points(model, "backbone")}
    assert neck == {f"backbone.fpn_{kind}{level}" for level in (2, 3, 4, 5) for kind in ("lateral", "output")}
    with pytest.raises(UserError, match=r"scope backbone\+neck needs an FPN"):
        detector_points(build_detector(config(C4)), "backbone+neck")


@pytest.mark.parametrize("name", [C4, FPN])
def test_all_inputs_of_multiply_adds_are_quantized(name):
    model = build_detector(config(name, MODEL__MASK_ON=True))
    trace = trace_pass(model, detector_points(model, "all", "integer"), images())
    assert trace.coverage == 1
    assert [each.path for each in trace.operations if None in each.input_points] == []
    (image,) = (point for point in detector_points(model, "all", "integer") if point.fixed_range)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    assert image.fixed_range == pytest.approx((float((-mean / std).min()), float(((255 - mean) / std).max())))


@torch.no_grad()
def test_an_fpn_sum_is_one_8_bit_tensor():
    model = build_detector(config(FPN)).eval()
    quantization = Quantization(model, detector_points(model, "all", "integer"), Scheme(placement="integer"))
    quantization.calibrate([images()], forward=lambda network, batch: network(batch))
    points = {point.key: quantization[point] for point in quantization.points if not point.is_weight}
    laterals, read, handles = {}, {}, []
    with quantization.at(Bits(4, 4)):
        for level in (4, 5):  # behind the points' own hooks
            lateral, output = (getattr(model.backbone, f"fpn_{kind}{level}") for kind in ("lateral", "output"))
            handles.append(lateral.register_forward_hook(lambda m, args, out, at=level: laterals.update({at: out})))
            handles.append(output.register_forward_pre_hook(lambda m, args, at=level: read.update({at: args[0]})))
        model(images())
    for handle in handles:
        handle.remove()
    coarse = points["backbone.fpn_lateral5:output"](laterals[5], 8)
    assert torch.equal(coarse, laterals[5])  # a summand lies on its grid
    upsampled = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
    total = points["backbone/add#0:output"](laterals[4] + upsampled, 8)
    expected = points["backbone.fpn_output4:input"](total, 4)
    assert torch.equal(read[4], expected)
