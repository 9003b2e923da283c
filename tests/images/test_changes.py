"""Which objects are lost and which are new, against all ways to match them."""

import itertools

import numpy as np
import pytest

from ssql_det.images.changes import MIN_IOU, Changes, compute_iou, find_changes
from ssql_det.images.results import Detection


def make_detections(generator, count):
    boxes = generator.integers(1, 12, (count, 4)).astype(float).tolist()
    scores = generator.permutation(count) / 10
    return [Detection(int(generator.integers(2)), tuple(box), score) for box, score in zip(boxes, scores, strict=True)]


def test_no_detection_is_matched_twice_and_none_that_could_be_matched_is_left():
    generator = np.random.default_rng(0)
    for _ in range(300):
        reference, found = (make_detections(generator, int(generator.integers(6))) for _ in range(2))
        changes = find_changes(reference, found)
        assert len(reference) - len(changes.lost) == len(found) - len(changes.new)
        new = [each for index, each in enumerate(found) if index in changes.new]
        for lost, each in itertools.product(changes.lost, new):
            assert lost.class_index != each.class_index or compute_iou(lost, each) < MIN_IOU


def test_the_highest_score_chooses_first():
    reference = [Detection(0, (0, 0, 10, 10), 0.9)]
    found = [Detection(0, (0, 0, 10, 10), 0.5), Detection(0, (2, 0, 10, 10), 0.6)]
    assert find_changes(reference, found) == Changes((), frozenset({0}))


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, -5, 5), (float("nan"), 0, 5, 5), (0, 0, float("inf"), 0)])
def test_a_box_without_an_area_is_no_match(box):
    detection = Detection(0, box, 0.5)
    assert compute_iou(detection, detection) == 0
    assert find_changes([detection], [detection]).new == {0}


def test_the_overlap_is_that_of_the_engine():
    from torch import tensor

    from ssql_det.d2 import Boxes, pairwise_iou

    generator = np.random.default_rng(1)
    for one, other in zip(make_detections(generator, 50), make_detections(generator, 50), strict=True):
        boxes = [tensor([[x, y, x + width, y + height]]) for x, y, width, height in (one.box, other.box)]
        assert compute_iou(one, other) == pytest.approx(float(pairwise_iou(*map(Boxes, boxes))), rel=1e-6)
