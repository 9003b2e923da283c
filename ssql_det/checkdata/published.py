"""Counts of the published data sets, by their class names and split.

Sources: the PASCAL VOC 2007 and 2012 development kits (images of the detection task), the COCO 2017 release.
"""

from __future__ import annotations

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]

VOC_IMAGES = {
    ("VOC2007", "train"): 2501,
    ("VOC2007", "val"): 2510,
    ("VOC2007", "trainval"): 5011,
    ("VOC2007", "test"): 4952,
    ("VOC2012", "train"): 5717,
    ("VOC2012", "val"): 5823,
    ("VOC2012", "trainval"): 11540,
}

COCO_CATEGORIES = 80
COCO_IMAGES = {"train2017": 118287, "val2017": 5000}
