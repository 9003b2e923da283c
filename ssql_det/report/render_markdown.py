"""A page as Markdown, as GitHub reads it. Pictures and charts are files beside it.

>>> page = Document("What bits cost", (Heading("Boxes"), Figure("toy.png", content, "A toy scene")))
>>> print(render_markdown(page, "pictures/"))
# What bits cost
<BLANKLINE>
## Boxes
<BLANKLINE>
![A toy scene](pictures/toy.png)
<BLANKLINE>
*A toy scene*
>>> list(collect_image_files(page))
['toy.png']
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from ssql_det.report.charts import render_svg
from ssql_det.report.document import (
    Block,
    Chart,
    CodeBlock,
    Collapsible,
    Document,
    Figure,
    Heading,
    ItemList,
    Paragraph,
    Table,
)
from ssql_det.report.markup import Style, clean_lines, render_markup, strip_markup

_SPECIAL = re.compile(
    r"""[\\`*~$<]  # starts of code, emphasis, mathematics, HTML
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis too, but not within a name
    | \](?=[(\[:])  # a link, or the definition of one
    | !(?=\[|$)  # a picture
    | (?<!\S)\#(?=\#*$)  # the end of a heading
    | &(?=\#?\w+;)""",
    re.VERBOSE,
)
_START = re.compile(r"\d{1,9}(?=[.)](\s|$))|(?=[-+](\s|$)|--|>|#{1,6}(\s|$))")  # of a list, a rule, a heading


def render_markdown(document: Document, pictures: str = "") -> str:
    """The whole text, with a newline at its end. ``pictures`` is the path to the picture files, such as ``figures/``.

    A document without a title is a part of another text.
    """
    return _Writer(document.anchors, pictures).blocks(document.with_title) + "\n"


def collect_image_files(document: Document) -> dict[str, bytes]:
    """What `render_markdown` refers to: the content of each file by its name."""
    files: dict[str, bytes] = {}
    for block in document.all_blocks():
        if not isinstance(block, (Figure, Chart)):
            continue
        name = image_file_name(block)
        content = block.content if isinstance(block, Figure) else render_svg(block, standalone=True).encode()
        if files.setdefault(name, content) != content:
            raise ValueError(f"two pictures of one page are called {name!r}")
    return files


def image_file_name(block: Figure | Chart) -> str:
    name = block.name if isinstance(block, Figure) else f"{block.name}.svg"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"a picture's name is that of a file without a folder, got {name!r}")
    return name


@dataclass(frozen=True)
class _Writer:
    anchors: Collection[str]
    pictures: str

    def blocks(self, blocks: Sequence[Block]) -> str:
        return "\n\n".join(map(self.block, blocks))

    def block(self, block: Block) -> str:
        match block:
            case Heading(text, level):
                return f"{'#' * level} {self.text(text)}"
            case Paragraph(text):
                return self.paragraph(text)
            case ItemList(texts, is_numbered):
                marks = [f"{number}." if is_numbered else "-" for number in range(1, len(texts) + 1)]
                return "\n".join(f"{mark} {self.paragraph(text)}" for mark, text in zip(marks, texts, strict=True))
            case Table():
                return self.table(block)
            case CodeBlock(text):
                fence = "`" * max(3, *(len(run) + 1 for run in ["", *re.findall("`+", text)]))
                return f"{fence}\n{clean_lines(text)}\n{fence}"
            case Figure(_, _, words):
                return f"{self.image(block, words)}\n\n*{self.text(words)}*"
            case Chart(_, title):
                return self.image(block, title)
            case Collapsible(summary, blocks):
                opened = f"<details>\n<summary>{escape(strip_markup(summary))}</summary>"
                return f"{opened}\n\n{self.blocks(blocks)}\n\n</details>"

    def image(self, block: Figure | Chart, words: str) -> str:
        words = strip_markup(words).translate({ord("["): "(", ord("]"): ")"})
        return f"![{_escaped(words)}]({self.pictures}{image_file_name(block)})"

    def table(self, table: Table) -> str:
        rule = ["---" if column < table.names else "---:" for column in range(len(table.header))]
        header, *body = [[self.cell(text) for text in row] for row in (table.header, *table.rows)]
        rows = [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]
        return "\n".join([*([f"*{self.text(table.caption)}*\n"] if table.caption else []), *rows])

    def cell(self, text: str) -> str:
        return self.text(text).replace("|", "\\|")

    def paragraph(self, text: str) -> str:
        """What would begin a list, a rule, a heading or a quotation is told that it does not."""
        written = self.text(text)
        start = _START.match(written)
        return f"{written[: start.end()]}\\{written[start.end() :]}" if start else written

    def text(self, text: str) -> str:
        return render_markup(text, _STYLE, self.anchors)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + found[0], text)


_STYLE = Style(
    words=_escaped,
    code=lambda code: f"`{code}`",
    link=lambda words, target: f"[{words}]({target})",
)
