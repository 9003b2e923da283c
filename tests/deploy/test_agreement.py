"""The comparison of an exported detector, or backbone, with the engine's finds every difference.

What stands for the exported file here is the inference graph in torch, with outputs that are changed.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.deploy.detectors import GraphDetector, make_detector
from support.detect.configs import random_images
from torch import nn

from ssql_det.convert import IMAGENET
from ssql_det.core.errors import UserError
from ssql_det.deploy.agreement import Agreement, ComparedAP, compare_detectors, compare_features, match_detections
from ssql_det.deploy.graph import BackboneGraph


def compare(kind="FPN with masks", images=2, size=None, **changes):
    cfg, model = make_detector(kind)
    batches = [[inputs | (size or {})] for inputs in random_images(images)]
    return compare_detectors(GraphDetector(cfg, model, **changes), model, batches)


def test_the_same_detections_are_close():
    found = compare(size={"height": 190, "width": 45})
    assert found == Agreement(2, 40, 0, 0, 0.0, 0.0, 0.0, 1.0)
    assert found.is_close
    assert found.to_dict()["agrees"] is True


def test_images_without_detections_are_close():
    assert compare("no detection") == Agreement(2, 0, 0, 0, 0.0, 0.0, 0.0, 1.0)


def of_boxes(change):
    return lambda raw: replace(raw, boxes=change(raw.boxes))


def of_scores(change):
    return lambda raw: replace(raw, scores=change(raw.scores))


def of_masks(change):
    return lambda raw: replace(raw, masks=change(raw.masks))


def in_one(index, amount):
    def change(values):
        values = values.copy()
        values.reshape(-1)[index] += amount
        return values

    return change


DIFFERENCES = {
    "scores": (of_scores(lambda scores: scores + np.float32(2e-4)), "score_difference", 2e-4),
    "a score": (of_scores(in_one(7, 2e-4)), "score_difference", 2e-4),
    "boxes": (of_boxes(lambda boxes: boxes + 0.9), "box_difference", 0.9 / 96),
    "a corner": (of_boxes(in_one(30, 0.1)), "box_difference", 0.1 / 96),
    "a box elsewhere": (of_boxes(in_one(30, 5)), "unmatched", 4),
    "a detection less": (lambda raw: raw[1:], "unmatched", 2),
    "a detection more": (lambda raw: raw[[0, *range(len(raw))]], "unmatched", 2),
    "another class": (lambda raw: replace(raw, classes=(raw.classes + 1) % 10), "unmatched", 80),
    "masks": (of_masks(lambda masks: masks + np.float32(2e-3)), "mask_difference", 2e-3),
    "a probability": (of_masks(in_one(700, 2e-3)), "mask_difference", 2e-3),
    "other masks": (of_masks(lambda masks: 1 - masks), "mask_iou", 0.0),
    "no masks": (lambda raw: replace(raw, masks=None), "mask_difference", np.inf),
    "NaN": (of_scores(in_one(7, np.nan)), "score_difference", np.nan),
    "a box of NaN": (of_boxes(in_one(30, np.nan)), "unmatched", 4),
}


@pytest.mark.parametrize(("change", "name", "value"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_difference_is_found(change, name, value):
    found = compare(change=change)
    assert not found.is_close
    assert getattr(found, name) == pytest.approx(value, rel=0.3, abs=0.1 if name == "mask_iou" else 0, nan_ok=True)


FINISHED = {
    "a detection less": (lambda found: replace(found, boxes=found.boxes[1:], classes=found.classes[1:]), "unmatched"),
    "boxes": (lambda found: replace(found, boxes=found.boxes + np.float32(0.1)), "box_difference"),
    "masks": (lambda found: replace(found, masks=np.roll(found.masks, 1, axis=2)), "mask_iou"),
}


@pytest.mark.parametrize(("change", "name"), FINISHED.values(), ids=FINISHED)
def test_a_difference_in_the_given_image_is_found(change, name):
    def change_finished(found):
        changed = change(found)
        count = len(changed.boxes)
        return replace(changed, scores=changed.scores[-count:], masks=changed.masks[-count:])

    found, same = compare(change_finished=change_finished), compare()
    assert not found.is_close
    assert getattr(found, name) != getattr(same, name)


def test_a_single_pixel_of_a_mask_is_no_difference():
    def flip(*pixels):
        def change_finished(found):
            masks = found.masks.copy()
            for row, column in pixels:
                masks[0, row, column] ^= True
            return replace(found, masks=masks)

        return change_finished

    assert compare(change_finished=flip((3, 4))).mask_iou == 1
    assert compare(change_finished=flip((3, 4), (5, 6))).mask_iou < 1


def test_another_model_is_not_close():
    cfg, model = make_detector("C4")
    _, other = make_detector("C4")
    with torch.no_grad():
        other.backbone.stem.conv1.weight[0] *= 1.1
    assert not compare_detectors(GraphDetector(cfg, model), other, [random_images(1)]).is_close


def test_without_images_nothing_is_compared():
    cfg, model = make_detector("C4")
    with pytest.raises(UserError, match="there is no image to compare the exported detector on"):
        compare_detectors(GraphDetector(cfg, model), model, [])


def test_aps_are_close_within_a_twentieth():
    assert ComparedAP(30.0, 30.04).is_close
    assert not ComparedAP(30.0, 30.06).is_close
    assert ComparedAP(np.nan, np.nan).is_close
    assert not ComparedAP(np.nan, 30.0).is_close


# ---- pairs


def test_the_closest_boxes_of_a_class_are_pairs():
    boxes = np.float32([[0, 0, 4, 4], [0, 0, 5, 5], [0, 0, 4, 4], [9, 9, 12, 12]])
    others = np.float32([[0, 0, 5, 4], [0, 0, 4.5, 4], [0, 0, 4, 4], [20, 20, 24, 24]])
    pairs = match_detections(boxes, np.array([1, 1, 2, 1]), others, np.array([1, 1, 2, 1]), distance=2)
    assert pairs.tolist() == [[0, 1], [1, 0], [2, 2]]


def test_a_distance_is_of_the_farthest_corner_and_no_pair_at_the_limit():
    boxes, classes = np.float32([[0, 0, 4, 4]]), np.array([3])
    assert match_detections(boxes, classes, boxes + np.float32([0, 0, 0, 2]), classes, distance=2).tolist() == []
    assert match_detections(boxes, classes, boxes + np.float32([1, 1, 1, 1.9]), classes, distance=2).tolist() == [
        [0, 0]
    ]


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (0, 3), (3, 0)])
def test_no_detection_has_no_pair(ours, theirs):
    def make(count):
        return np.zeros((count, 4), np.float32), np.zeros(count, np.int64)

    assert match_detections(*make(ours), *make(theirs), distance=1).shape == (0, 2)


# ---- backbones


class Flatten(nn.Module):
    """Stands for a backbone."""

    def __init__(self, value=1.0):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value * x.mean(dim=[2, 3])


@pytest.fixture
def file_of(monkeypatch):
    """Makes ``compare_features`` open a graph instead of a file."""

    def open_as(graph, shape):
        class Session:
            def __init__(self):
                self.sizes = []

            def get_inputs(self):
                return [type("Input", (), {"shape": shape})]

            def run(self, names, inputs):
                (image,) = inputs.values()
                self.sizes.append(image.shape[:2])
                return [graph(torch.from_numpy(image)).numpy()]

        session = Session()
        monkeypatch.setattr("ssql_det.deploy.agreement.open_session", lambda path, threads: (session, None))
        return session

    return open_as


def make_backbone_graph(value=1.0):
    return BackboneGraph(Flatten(value), IMAGENET)


@pytest.mark.parametrize(
    ("value", "agrees"), [(1.0, True), (1.00005, True), (1.001, False), (float("nan"), False), (0.0, False)]
)
def test_features_agree_to_four_digits(value, agrees, file_of):
    session = file_of(make_backbone_graph(value), ["height", "width", 3])
    found = compare_features("a.onnx", make_backbone_graph(), 32, 3)
    assert (found["agrees"], found["images"]) == (agrees, 3)
    assert session.sizes == [(32, 32), (32, 64), (32, 32)]


def test_features_of_a_fixed_size_and_of_zeros(file_of):
    session = file_of(make_backbone_graph(0.0), [32, 32, 3])
    assert compare_features("a.onnx", make_backbone_graph(0.0), 32, 2)["agrees"]
    assert session.sizes == [(32, 32)] * 2
    assert not compare_features("a.onnx", make_backbone_graph(float("nan")), 32, 2)["agrees"]
    assert compare_features("a.onnx", make_backbone_graph(), 32, 0) == {}
