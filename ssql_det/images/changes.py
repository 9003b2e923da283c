"""What changes between two sets of detections of an image: which objects are lost, and which are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssql_det.images.results import Detection

MIN_IOU = 0.5  # of two boxes of one object


@dataclass(frozen=True)
class Changes:
    lost: tuple[Detection, ...]  # of the reference, without a counterpart
    new: frozenset[int]  # indices of detections without a counterpart in the reference


def find_changes(reference: Sequence[Detection], found: Sequence[Detection]) -> Changes:
    """Each detection, the highest score first, is matched with the box of its class that it overlaps most.

    >>> cat, dog = Detection(0, (0, 0, 10, 10), 0.9), Detection(1, (0, 0, 10, 10), 0.8)
    >>> changes = find_changes([cat], [Detection(0, (1, 0, 10, 10), 0.6), dog])
    >>> changes.lost, changes.new
    ((), frozenset({1}))
    """
    unmatched, new = dict(enumerate(reference)), set()
    for index in sorted(range(len(found)), key=lambda index: -found[index].score):
        candidates = [key for key, each in unmatched.items() if each.class_index == found[index].class_index]
        best = max(candidates, key=lambda key: compute_iou(unmatched[key], found[index]), default=None)
        if best is not None and compute_iou(unmatched[best], found[index]) >= MIN_IOU:
            del unmatched[best]
        else:
            new.add(index)
    return Changes(tuple(unmatched.values()), frozenset(new))


def compute_iou(one: Detection, other: Detection) -> float:
    """The intersection of two boxes over their union; 0 for boxes without an area.

    >>> compute_iou(Detection(0, (0, 0, 10, 10), 1.0), Detection(0, (5, 0, 10, 10), 1.0))
    0.3333333333333333
    """
    (x0, y0, width0, height0), (x1, y1, width1, height1) = one.box, other.box
    width = min(x0 + width0, x1 + width1) - max(x0, x1)
    height = min(y0 + height0, y1 + height1) - max(y0, y1)
    if not (width > 0 and height > 0):  # also for NaN
        return 0.0
    return width * height / (width0 * height0 + width1 * height1 - width * height)
