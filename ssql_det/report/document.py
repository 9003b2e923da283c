"""A page as values: what it says, without how it looks. Renderers make HTML, Markdown or LaTeX of it.

Texts may hold ```code``` between backticks and links as ``[words](target)``, see `texts`; nothing else is markup.

>>> page = Document("What bits cost", (
...     Heading("Boxes"),
...     Paragraph("Measured with `ssql-det sweep`; see [the environment](#environment)."),
...     Table(("method", "FP", "4w4a"), (("SSQL", "48.8", "44.7"),)),
...     Heading("Environment"),
...     CodeBlock("torch 2.14.1"),
... ))
>>> as_html(page), as_markdown(page)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ssql_det.report.markup import strip_markup


@dataclass(frozen=True)
class Heading:
    """Level 2 is a section of the page, 3 a part of one."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """As GitHub makes it, so that a link in a page of Markdown leads where it does in HTML.

        Of several headings with one text this is the first's: see `Document.anchors`.
        """
        return re.sub(r"[^\w -]", "", strip_markup(self.text).lower()).replace(" ", "-") or "section"


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    text: str


@dataclass(frozen=True)
class ItemList:
    """A list of points, or of numbered steps."""

    texts: tuple[str, ...]
    is_numbered: bool = False


@dataclass(frozen=True)
class Table:
    """The first ``names`` columns are words and stand left, the others figures and stand right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    caption: str = ""


@dataclass(frozen=True)
class CodeBlock:
    """Lines to copy: commands, versions."""

    text: str


@dataclass(frozen=True)
class Figure:
    """The bytes of an image file; ``name`` is that file's, ``words`` say what it shows."""

    name: str
    content: bytes
    words: str


@dataclass(frozen=True)
class Curve:
    """A named line over the chart's places. ``None``: nothing was measured there. ``spread`` is a deviation each."""

    name: str
    values: tuple[float | None, ...]
    spread: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Lines over places that have names, such as bit-widths. ``name`` is a file's, without its ending."""

    name: str
    title: str
    places: tuple[str, ...]
    curves: tuple[Curve, ...]
    unit: str = ""


@dataclass(frozen=True)
class Collapsible:
    """What is there for who asks: shut until it is opened."""

    summary: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Heading | Paragraph | ItemList | Table | CodeBlock | Figure | Chart | Collapsible


@dataclass(frozen=True)
class Document:
    title: str
    blocks: tuple[Block, ...]

    @property
    def with_title(self) -> tuple[Block, ...]:
        """Its blocks, after a heading with the title where there is one."""
        return (Heading(self.title, level=1), *self.blocks) if self.title else self.blocks

    def all_blocks(self) -> Iterator[Block]:
        """The title's heading and those that are folded too."""
        yield from _unfolded(self.with_title)

    @property
    def headings(self) -> tuple[Heading, ...]:
        return tuple(block for block in self.all_blocks() if isinstance(block, Heading))

    @property
    def anchors(self) -> tuple[str, ...]:
        """Those of the headings in their order; each is there once.

        >>> Document("Boxes", (Heading("Boxes"), Heading("4 bits, 8 bits"))).anchors
        ('boxes', 'boxes-1', '4-bits-8-bits')
        """
        found: dict[str, None] = {}
        for anchor in (heading.anchor for heading in self.headings):
            numbered = (anchor if number == 0 else f"{anchor}-{number}" for number in itertools.count())
            found[next(each for each in numbered if each not in found)] = None
        return tuple(found)


def _unfolded(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Collapsible):
            yield from _unfolded(block.blocks)
