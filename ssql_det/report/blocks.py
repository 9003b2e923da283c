"""The blocks of a page (headings, paragraphs, tables, charts...), independent of the output format.

A block's texts may hold inline code and links, see `report.markup`; everything else is plain text.

>>> Table(("method", "FP", "4w4a"), (("SSQL", "48.8", "44.7"),)).caption
''
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from ssql_det.report.markup import strip_markup


@dataclass(frozen=True)
class Heading:
    """Level 1 is the page's title, 2 a section, 3 a subsection."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """The link target that GitHub derives from the text; `Document.anchors` numbers repeated ones.

        >>> Heading("4 bits, `8` bits").anchor
        '4-bits-8-bits'
        """
        return re.sub(r"[^\w -]", "", strip_markup(self.text).lower()).replace(" ", "-") or "section"


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class ItemList:
    """A bullet list, or a numbered one."""

    texts: tuple[str, ...]
    is_numbered: bool = False


@dataclass(frozen=True)
class Table:
    """The first ``text_columns`` columns hold text and are aligned left, the others numbers, aligned right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    caption: str = ""


@dataclass(frozen=True)
class CodeBlock:
    """Preformatted lines, such as commands or package versions."""

    text: str


@dataclass(frozen=True)
class Figure:
    """An image: its file name, the bytes of that file, and a caption."""

    name: str
    content: bytes
    caption: str


@dataclass(frozen=True)
class Slides:
    """Figures of equal size, one above the other; in a browser with scripts a slider shows one of them at a time."""

    title: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Curve:
    """A named curve with one value for each x label of its chart; ``None`` is a gap."""

    name: str
    values: tuple[float | None, ...]
    std: tuple[
        float | None, ...
    ] = ()  # standard deviation of each value, None where there is none; () if all have none


@dataclass(frozen=True)
class Chart:
    """A line chart over named positions, such as bit-widths. ``name`` is the chart's file name without the suffix.

    Curves do not join the ``separate`` positions with others: those that are no step of a sequence, as 2w4a after 4w4a.
    """

    name: str
    title: str
    x_labels: tuple[str, ...]
    curves: tuple[Curve, ...]
    y_label: str = ""
    separate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Named points (x, y) of a scatter chart; with ``is_line`` a line joins them in their order."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_line: bool = False


@dataclass(frozen=True)
class Scatter:
    """Points with numbers on both axes. ``name`` is the chart's file name without the suffix.

    On an axis of logarithms, points that are not above 0 are left out.
    """

    name: str
    title: str
    series: tuple[Series, ...]
    x_label: str
    y_label: str
    is_log_x: bool = False


@dataclass(frozen=True)
class Tile:
    """A number that is large on the page, what it is of, and a line about it."""

    title: str
    value: str
    text: str


def describe_tile(tile: Tile) -> str:
    """
    >>> describe_tile(Tile("SSQL", "-1.2 AP", "at 4w4a"))
    'SSQL: -1.2 AP, at 4w4a'
    """
    return f"{tile.title}: {tile.value}" + (f", {tile.text}" if tile.text else "")


@dataclass(frozen=True)
class Tiles:
    """The numbers that a page begins with, side by side where there is room."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Collapsible:
    """Blocks that are hidden until the reader opens the summary."""

    summary: str
    blocks: tuple[Block, ...]


Block: TypeAlias = (
    Heading | Paragraph | ItemList | Table | CodeBlock | Figure | Slides | Chart | Scatter | Tiles | Collapsible
)
