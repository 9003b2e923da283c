"""What a check finds, and the summary it gives of a split."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from PIL import EpsImagePlugin, Image

from ssql_det.core.console import track
from ssql_det.core.errors import printable

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, ends exclusive
_ORIENTATION = 0x0112  # the EXIF tag
EpsImagePlugin.gs_binary = False  # PostScript may come under any name, and Pillow would start Ghostscript for it


@dataclass(frozen=True)
class Finding:
    """One fault. ``fatal`` when a training on this data would fail."""

    where: str
    what: str
    fatal: bool = True

    def __str__(self) -> str:
        """One line that a terminal shows as it is, whatever names the data set brought into it."""
        return printable(f"{'error' if self.fatal else 'warning'}: {self.where}: {self.what}")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with what is annotated in it: enough to check its file, and to draw it."""

    path: Path
    size: tuple[int, int] | None  # width, height as annotated
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    masks: tuple[object, ...] = ()  # COCO segmentations; none in VOC


@dataclass
class SplitReport:
    """One split: its pictures, and what was found."""

    name: str
    pictures: list[AnnotatedImage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def error(self, where: object, what: str) -> None:
        self.findings.append(Finding(str(where), what))

    def warn(self, where: object, what: str) -> None:
        self.findings.append(Finding(str(where), what, fatal=False))

    @property
    def objects(self) -> Counter[str]:
        """How many there are of each class."""
        return Counter(label for picture in self.pictures for label in picture.labels)

    def check_box(self, where: object, what: str, box: Box, size: tuple[int, int] | None) -> None:
        """An empty, inverted or endless box is a fault; one that leaves its image is clipped by every reader."""
        x0, y0, x1, y1 = box
        if not all(math.isfinite(value) for value in box):
            self.error(where, f"{what} has a box that is not finite")
        elif not (x1 > x0 and y1 > y0):
            self.error(where, f"{what} has an empty or inverted box {_short(box)}")
        elif size is not None and (x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]):
            self.warn(where, f"{what} has a box {_short(box)} that leaves the image of {size[0]}x{size[1]}")

    def check_classes(self, where: object, known: list[str]) -> None:
        """To be called when all pictures are there."""
        objects = self.objects
        absent = [name for name in known if name not in objects]
        if absent and len(absent) < len(known):
            self.warn(where, f"no object of {', '.join(absent)}")
        if self.pictures and not any(picture.boxes for picture in self.pictures):
            self.error(where, "no image has an object; nothing can be trained on it")

    def check_count(self, where: object, published: int | None) -> None:
        """``published``: how many images the published split has, if this is one."""
        if published and len(self.pictures) != published:
            self.warn(where, f"{len(self.pictures)} images, the published split has {published}")


def find_duplicates(ids: Iterable[object]) -> list[object]:
    return [found for found, count in Counter(ids).items() if count > 1]


def _short(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def check_images(split: SplitReport, quick: bool = False, workers: int | None = None) -> None:
    """Add a finding for each image that is missing, cannot be decoded, or is of another size.

    ``quick`` reads the headers only, and so misses files that are cut short.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoders work without the interpreter's lock
        faults = pool.map(_fault, split.pictures, repeat(quick))
        for picture, fault in zip(track(split.pictures, f"reading images of {split.name}"), faults, strict=True):
            if fault:
                split.error(picture.path, fault)


def _fault(picture: AnnotatedImage, quick: bool) -> str | None:
    if not picture.path.is_file():  # a pipe would be waited for without end
        return "the image is missing, or is no file"
    try:
        with Image.open(picture.path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5  # readers turn such an image upright
            size = image.size[::-1] if turned else image.size
            if not quick:
                image.load()
    except Exception as failure:  # a damaged file can make a decoder fail in any way
        return f"the image cannot be read ({failure})"
    if picture.size is not None and size != picture.size:
        return f"the image is {size[0]}x{size[1]}, its annotation says {picture.size[0]}x{picture.size[1]}"
    return None
