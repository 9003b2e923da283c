"""The errors and warnings of a split, and the check of its image files."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from ssql_det.core.console import track
from ssql_det.core.errors import printable
from ssql_det.images.reading import read_image, read_size

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, ends exclusive


@dataclass(frozen=True)
class Finding:
    """An error, with which training would fail, or a warning."""

    where: str
    problem: str
    is_error: bool = True

    def __str__(self) -> str:
        """One line; control characters in names from the data set are escaped."""
        return printable(f"{'error' if self.is_error else 'warning'}: {self.where}: {self.problem}")


@dataclass(frozen=True)
class AnnotatedImage:
    """The path of an image and its annotations."""

    path: Path
    size: tuple[int, int] | None  # width and height by the annotation
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    masks: tuple[object, ...] = ()  # COCO segmentations; empty for VOC


@dataclass
class SplitReport:
    """The images of a split and the findings about them."""

    name: str
    images: list[AnnotatedImage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def error(self, where: object, problem: str) -> None:
        self.findings.append(Finding(str(where), problem))

    def warn(self, where: object, problem: str) -> None:
        self.findings.append(Finding(str(where), problem, is_error=False))

    @property
    def object_counts(self) -> Counter[str]:
        """The number of objects of each class."""
        return Counter(label for image in self.images for label in image.labels)

    def check_box(self, where: object, name: str, box: Box, size: tuple[int, int] | None) -> None:
        """An empty, inverted or infinite box is an error. One that exceeds its image is a warning: readers clip it."""
        x0, y0, x1, y1 = box
        if not all(math.isfinite(value) for value in box):
            self.error(where, f"{name} has a box that is not finite")
        elif not (x1 > x0 and y1 > y0):
            self.error(where, f"{name} has an empty or inverted box {_format_box(box)}")
        elif size is not None and (x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]):
            self.warn(where, f"{name} has a box {_format_box(box)} that exceeds the image of {size[0]}x{size[1]}")

    def check_classes(self, where: object, classes: list[str]) -> None:
        """Called when ``images`` is complete."""
        counts = self.object_counts
        empty = [name for name in classes if name not in counts]
        if empty and len(empty) < len(classes):
            self.warn(where, f"the split has no object of {', '.join(empty)}")
        if self.images and not any(image.boxes for image in self.images):
            self.error(where, "no image has an object, so nothing can be trained")

    def check_count(self, where: object, expected: int | None) -> None:
        """Compare with the number of images of the published split, if it is one."""
        if expected and len(self.images) != expected:
            self.warn(where, f"it has {len(self.images)} images, the published split has {expected}")


def find_duplicates(ids: Iterable[object]) -> list[object]:
    return [each for each, count in Counter(ids).items() if count > 1]


def _format_box(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def check_images(split: SplitReport, quick: bool = False, workers: int | None = None) -> None:
    """Add an error for each image that is missing, cannot be decoded, or has another size than annotated.

    ``quick`` reads only the headers, and so does not find truncated files.
    """
    # The reader changes warning filters, which threads share: the outer block restores them.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoders release the GIL
        problems = pool.map(_find_problem, split.images, repeat(quick))
        for image, problem in zip(track(split.images, f"reading images of {split.name}"), problems, strict=True):
            if problem:
                split.error(image.path, problem)


def _find_problem(annotated: AnnotatedImage, quick: bool) -> str | None:
    if not os.path.isfile(annotated.path):  # unlike Path.is_file, whatever the name is
        return "the image is missing or not a regular file"
    try:
        size = read_size(annotated.path) if quick else read_image(annotated.path).size
    except Exception as failure:  # a decoder can raise any exception for a damaged file
        return f"the image cannot be read ({failure})"
    if annotated.size is not None and size != annotated.size:
        return f"the image is {size[0]}x{size[1]}, but {annotated.size[0]}x{annotated.size[1]} in its annotation"
    return None
