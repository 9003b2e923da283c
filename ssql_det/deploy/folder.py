"""Detect in many images: a picture for each, and all detections in COCO's format, as ``ssql-det predict`` writes them.

A thread reads an image, runs the detector, draws the picture and keeps only boxes and encoded masks, so the memory
needed depends on the number of threads, not on the number of images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ssql_det.core.console import track
from ssql_det.core.errors import UserError
from ssql_det.deploy.cpu import count_cores
from ssql_det.deploy.detector import Detector
from ssql_det.deploy.postprocess import RawDetections, scale_detections
from ssql_det.images.drawing import draw_panel
from ssql_det.images.masks import paste_masks
from ssql_det.images.reading import read_rgb
from ssql_det.images.results import Detection, collect_detections, save_detections, save_picture

JSON_NAME = "detections.json"


@dataclass(frozen=True)
class Summary:
    """How many images were processed, how many could not be read, and how many objects were found."""

    images: int
    failed: int
    objects: int


def count_session_threads(images_at_a_time: int) -> int:
    """The threads of onnxruntime for one image, so that all threads together are one per core, if there are as many.

    Each image has a thread of its own already; the session's further ones are shared.
    """
    return max(1, count_cores() - images_at_a_time + 1)


def detect_in_images(
    detector: Detector, paths: Sequence[Path], out: Path, min_score: float, threads: int = 1
) -> Summary:
    """Write ``IMAGE.png`` per image and ``detections.json`` with the detections of at least this score.

    ``threads`` images are processed at a time. An image that cannot be read is named on stderr and left out; if there
    is no other, nothing is written, and it is a ``UserError``.
    """
    read, found = [], []
    pool = ThreadPoolExecutor(threads)
    try:
        outcomes = pool.map(partial(process_image, detector, out, min_score), paths)
        for path, outcome in zip(paths, track(outcomes, "detecting", len(paths)), strict=True):
            if isinstance(outcome, UserError):
                print(f"skipped: {outcome}", file=sys.stderr)
            else:
                read.append(path)
                found.append(outcome)
    finally:
        pool.shutdown(cancel_futures=True)
    failed = len(paths) - len(read)
    if not read:
        raise UserError(f"none of the {failed} image(s) could be processed; the reasons are above")
    save_detections(out / JSON_NAME, read, found, detector.class_names, detector.metadata.category_ids)
    return Summary(len(read), failed, sum(map(len, found)))


def process_image(detector: Detector, out: Path, min_score: float, path: Path) -> list[Detection] | UserError:
    """Write the picture of an image and return its detections, or the reason why it cannot be processed.

    An output that cannot be written is raised: it would fail for the other images too.
    """
    try:
        image = read_rgb(path)
    except UserError as failure:
        return failure
    height, width = image.shape[:2]
    try:
        raw = detector.detect_resized(detector.prepare(image))
    except UserError as failure:
        return UserError(f"{path}: {failure}")
    detections = _collect(scale_detections(raw, height, width, min_score))
    save_picture(
        out / f"{path.stem}.png", [draw_panel(image, detections, detector.class_names, detector.metadata.bits)]
    )
    return detections


def _collect(scaled: RawDetections) -> list[Detection]:
    """Paste and encode one mask after the other: many at a time, in the size of a photo, need gigabytes."""
    collected = []
    for index in range(len(scaled)):
        one = scaled[index : index + 1]
        masks = None if one.masks is None else paste_masks(one.masks, one.boxes, *one.size)
        collected += collect_detections(one.boxes, one.scores, one.classes, masks)
    return collected
