"""A page as a title and blocks, and the base class of its renderers; each format has a file ``render_<format>.py``.

>>> from ssql_det.report.blocks import Paragraph
>>> from ssql_det.report.render_markdown import render_markdown
>>> page = Document("What bits cost", (Paragraph("See [the table](#boxes)."), Heading("Boxes")))
>>> print(render_markdown(page))
# What bits cost
<BLANKLINE>
See [the table](#boxes).
<BLANKLINE>
## Boxes
<BLANKLINE>
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ssql_det.report.blocks import Block, Collapsible, Heading, Slides
from ssql_det.report.markup import MarkupStyle, render_markup


@dataclass(frozen=True)
class Document:
    """A page; with an empty title, a fragment to be included in another text."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def titled_blocks(self) -> tuple[Block, ...]:
        """The title as a heading, if there is one, and the blocks."""
        return (Heading(self.title, level=1), *self.blocks) if self.title else self.blocks

    def iterate_blocks(self) -> Iterator[Block]:
        """All blocks in order: the title's heading first, and the blocks inside other blocks too."""
        yield from _flatten(self.titled_blocks)

    @property
    def headings(self) -> tuple[Heading, ...]:
        return tuple(block for block in self.iterate_blocks() if isinstance(block, Heading))

    @property
    def anchors(self) -> tuple[str, ...]:
        """A unique link target for each heading, numbered as GitHub does.

        >>> Document("Boxes", (Heading("Boxes"), Heading("4 bits, 8 bits"))).anchors
        ('boxes', 'boxes-1', '4-bits-8-bits')
        """
        anchors: dict[str, None] = {}
        for anchor in (heading.anchor for heading in self.headings):
            candidates = (anchor if number == 0 else f"{anchor}-{number}" for number in itertools.count())
            anchors[next(candidate for candidate in candidates if candidate not in anchors)] = None
        return tuple(anchors)


def _flatten(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Collapsible):
            yield from _flatten(block.blocks)
        elif isinstance(block, Slides):
            yield from block.figures


class Renderer(ABC):
    """Renders a document's blocks in one format; a subclass sets the markup style and renders each type of block."""

    style: ClassVar[MarkupStyle]
    separator: ClassVar[str] = "\n\n"  # between blocks

    def __init__(self, document: Document) -> None:
        self.anchors = document.anchors

    @abstractmethod
    def render_block(self, block: Block) -> str: ...

    def render_blocks(self, blocks: Sequence[Block]) -> str:
        return self.separator.join(map(self.render_block, blocks))

    def render_text(self, text: str) -> str:
        return render_markup(text, self.style, self.anchors)
