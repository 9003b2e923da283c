"""The distillation loss, written out on small tensors, and its zero on a detector."""

import torch
import torch.nn.functional as F

from ssql_det.detect.distillation import DetectorOutputs, distillation_loss


def draw_outputs(seed, classes=3, agnostic=False, masks=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    boxes = draw(4, 4 if agnostic else 4 * classes)
    return DetectorOutputs(draw(6), draw(6, 4), draw(4, classes + 1), boxes, draw(2, 5, 5) if masks else None)


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


def test_equal_outputs_have_no_loss_and_no_detection_no_mask_loss():
    outputs = draw_outputs(0)
    torch.testing.assert_close(distillation_loss(outputs, outputs), torch.zeros((), dtype=torch.float64))
    others = draw_outputs(1)
    without = [DetectorOutputs(**{**vars(each), "mask_logits": torch.zeros(0, 5, 5)}) for each in (outputs, others)]
    none = [DetectorOutputs(**{**vars(each), "mask_logits": None}) for each in (outputs, others)]
    assert torch.equal(distillation_loss(*without), distillation_loss(*none))
    assert distillation_loss(*none) < distillation_loss(outputs, others)
