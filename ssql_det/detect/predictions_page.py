"""The page of predictions: how many objects each bit-width finds in each image, and the images with a slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ssql_det.images.changes import find_changes
from ssql_det.images.reading import Pixels
from ssql_det.images.results import Detection, encode_jpeg
from ssql_det.quant import Bits
from ssql_det.report.blocks import Figure, Heading, Paragraph, Slides, Table
from ssql_det.report.document import Document
from ssql_det.report.markup import escape_markup

_MAX_BYTES = 1_400_000  # of the images on the page, which are a third larger as text


class PredictionsPage:
    """Collects the panels of images, as long as there is room for them, and builds the page."""

    def __init__(self) -> None:
        self._slides: list[Slides] = []
        self._free_bytes = _MAX_BYTES

    def add(self, image: Path, panels: Mapping[str, Pixels]) -> None:
        """Add an image; ``panels`` by name, such as ``FP``."""
        contents = {name: encode_jpeg(panel) for name, panel in panels.items()} if self._free_bytes > 0 else {}
        self._free_bytes -= sum(map(len, contents.values()))
        if self._free_bytes > 0:
            figures = (Figure(f"{image.stem}-{name}.jpg", content, name) for name, content in contents.items())
            self._slides.append(Slides(escape_markup(image.name), tuple(figures)))

    def build(self, images: Sequence[Path], detections_by_bits: Mapping[Bits, list[list[Detection]]]) -> Document:
        """A table of all images, and those that were added."""
        reference = detections_by_bits.get(Bits.FP)
        rows = []
        for index, image in enumerate(images):
            counts = (
                _count_objects(found[index], None if reference is None or bits == Bits.FP else reference[index])
                for bits, found in detections_by_bits.items()
            )
            rows.append((escape_markup(image.name), *counts))
        marks = " In brackets: those that FP finds and the bit-width loses, and new ones." if reference else ""
        left_out = len(images) - len(self._slides)
        more = f" The other {left_out} are in the folder of this page." if left_out else ""
        return Document(
            "Detections at several bit-widths",
            (
                Heading("Objects"),
                Table(("image", *map(str, detections_by_bits)), tuple(rows), caption=f"Objects in each image.{marks}"),
                Heading("Images"),
                Paragraph(f"Beside FP, lost objects are dashed and new ones are marked.{more}"),
                *self._slides,
            ),
        )


def _count_objects(found: Sequence[Detection], reference: Sequence[Detection] | None) -> str:
    """
    >>> cat, dog = Detection(0, (0, 0, 10, 10), 0.9), Detection(1, (0, 0, 10, 10), 0.8)
    >>> _count_objects([cat], [cat]), _count_objects([dog], [cat, cat])
    ('1', '1 (-2, +1)')
    """
    changes = find_changes(found if reference is None else reference, found)
    marks = [f"{sign}{len(changed)}" for sign, changed in (("-", changes.lost), ("+", changes.new)) if changed]
    return f"{len(found)} ({', '.join(marks)})" if marks else str(len(found))
