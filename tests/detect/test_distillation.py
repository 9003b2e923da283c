"""The distillation loss, written out on small tensors, and the outputs of a detector in training."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.detect.configs import C4, FPN, config, random_images, randomize_norms

from ssql_det.d2 import Boxes, EventStorage, Instances, PolygonMasks
from ssql_det.detect.detector import build_detector
from ssql_det.detect.detector_outputs import DetectorOutputs, recording_outputs
from ssql_det.detect.distillation_terms import TERMS, distillation_loss


def draw_outputs(seed, classes=3, agnostic=False, masks=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    boxes = draw(4, 4 if agnostic else 4 * classes)
    predictions = draw(6), draw(6, 4), draw(4, classes + 1), boxes, draw(2, 5, 5) if masks else None
    return DetectorOutputs(*predictions, features=(draw(1, 2, 4, 4), 3 * draw(1, 2, 2, 2)))


def binary_divergence(logits, target):
    p, q = target.sigmoid(), logits.sigmoid()
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()


def smooth_l1(x, y):
    difference = (x - y).abs()
    return torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).sum(-1)


def test_the_loss_is_the_sum_of_its_terms():
    for agnostic in (False, True):
        outputs, target = draw_outputs(0, agnostic=agnostic), draw_outputs(1, agnostic=agnostic)
        p = F.softmax(target.class_logits, 1)
        classes = (p * (p.log() - F.log_softmax(outputs.class_logits, 1))).sum(1).mean()
        objects = target.objectness.sigmoid()
        anchors = (smooth_l1(outputs.anchor_deltas, target.anchor_deltas) * objects).sum() / objects.sum()
        foreground = p[:, :3].sum(1, keepdim=True) if agnostic else p[:, :3]
        deltas = (each.view(4, -1, 4) for each in (outputs.box_deltas, target.box_deltas))
        boxes = (smooth_l1(*deltas) * foreground).sum() / foreground.sum()
        expected = (
            binary_divergence(outputs.objectness, target.objectness)
            + anchors
            + classes
            + boxes
            + binary_divergence(outputs.mask_logits, target.mask_logits)
        )
        torch.testing.assert_close(distillation_loss(outputs, target), expected)
        pairs = list(zip(outputs.features, target.features, strict=True))
        features = sum(((x - y) ** 2).sum() / (y**2).sum() for x, y in pairs) / 2
        torch.testing.assert_close(distillation_loss(outputs, target, TERMS), expected + features)
        torch.testing.assert_close(distillation_loss(outputs, target, ["features", "classes"]), features + classes)


def test_equal_outputs_have_no_loss_and_no_detection_no_mask_loss():
    outputs = draw_outputs(0)
    torch.testing.assert_close(distillation_loss(outputs, outputs), torch.zeros((), dtype=torch.float64))
    others = draw_outputs(1)
    without = [replace(each, mask_logits=torch.zeros(0, 5, 5)) for each in (outputs, others)]
    none = [replace(each, mask_logits=None) for each in (outputs, others)]
    assert torch.equal(distillation_loss(*without), distillation_loss(*none))
    assert distillation_loss(*none) < distillation_loss(outputs, others)


def make_training_batch():
    images = random_images(2)
    for image in images:
        size = (image["height"], image["width"])
        boxes = torch.tensor([[8.0, 10.0, 50.0, 60.0], [30.0, 5.0, 70.0, 40.0]])
        polygons = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()]
        image["instances"] = Instances(
            size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor([1, 0]), gt_masks=PolygonMasks(polygons)
        )
    return images


@pytest.mark.parametrize("name", [C4, FPN])
def test_outputs_of_a_training_pass_are_those_of_its_anchors_regions_and_foreground(name):
    torch.manual_seed(2)
    model = randomize_norms(build_detector(config(name))).train()
    seen, regions = {}, []
    heads = model.roi_heads
    label = heads.label_and_sample_proposals
    heads.label_and_sample_proposals = lambda *args: regions.append(label(*args)) or regions[-1]
    paths = ["backbone", "proposal_generator.rpn_head", "roi_heads.box_predictor"]
    for path in [*paths, "roi_heads.mask_head.predictor"] if name == FPN else paths:
        module = model.get_submodule(path)
        module.register_forward_hook(lambda module, args, output, path=path: seen.update({path: output}))

    def run(bfloat16=False):
        torch.manual_seed(5)  # samples the same anchors and regions
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
        with EventStorage(), recording_outputs(model, with_features=True) as record, autocast:
            losses = model(make_training_batch())
        return record.collect(), sum(losses.values())

    target, loss = run()
    anchors = [each.permute(0, 2, 3, 1).flatten() for each in seen[paths[1]][0]]
    assert torch.equal(target.objectness, torch.cat(anchors))
    assert target.anchor_deltas.shape == (len(target.objectness), 4)
    assert target.class_logits is seen[paths[2]][0]
    assert target.box_deltas is seen[paths[2]][1]
    assert all(map(torch.equal, target.features, seen["backbone"].values()))
    classes = torch.cat([each.gt_classes for each in regions[0]])
    assert len(classes) == len(target.class_logits)
    if name == FPN:
        classes = classes[classes < heads.num_classes]  # of the foreground
        logits = seen["roi_heads.mask_head.predictor"]
        assert len(classes) > 1
        assert torch.equal(target.mask_logits, logits[range(len(classes)), classes])
    else:
        assert target.mask_logits is None
    loss.backward()  # the targets stay
    target = target.detach()
    terms = {term: distillation_loss(run()[0], target, [term]).item() for term in TERMS}
    assert terms == dict.fromkeys(TERMS, pytest.approx(0, abs=1e-6))
    outputs, _ = run(bfloat16=True)
    assert {each.dtype for each in (outputs.class_logits, outputs.objectness, *outputs.features)} == {torch.float32}
    model.zero_grad()
    distillation_loss(outputs, target, TERMS).backward()
    assert all(parameter.grad is not None for parameter in heads.box_predictor.parameters())
