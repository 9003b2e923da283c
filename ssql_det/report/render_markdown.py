"""A page as GitHub-flavored Markdown. Images and charts are separate files.

>>> page = Document("What bits cost", (Heading("Boxes"), Figure("toy.png", b"...", "A toy scene")))
>>> print(render_markdown(page, image_folder="images/"))
# What bits cost
<BLANKLINE>
## Boxes
<BLANKLINE>
![A toy scene](images/toy.png)
<BLANKLINE>
*A toy scene*
<BLANKLINE>
>>> list(collect_image_files(page))
['toy.png']
"""

from __future__ import annotations

import re
from html import escape

from ssql_det.report.blocks import (
    Block,
    Chart,
    CodeBlock,
    Collapsible,
    Figure,
    Heading,
    ItemList,
    Paragraph,
    Scatter,
    Slides,
    Table,
    Tiles,
    describe_tile,
)
from ssql_det.report.charts import render_svg
from ssql_det.report.document import Document, Renderer
from ssql_det.report.markup import MarkupStyle, clean_lines, strip_markup
from ssql_det.report.scatter import render_scatter

_SPECIAL = re.compile(
    r"""[\\`*~$<]  # starts of code, emphasis, mathematics, HTML
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis; an underscore between letters or digits does not mark it
    | \](?=[(\[:])  # a link, or the definition of one
    | !(?=\[|$)  # an image
    | (?<!\S)\#(?=\#*$)  # the end of a heading
    | &(?=\#?\w+;)  # an HTML entity""",
    re.VERBOSE,
)
_BLOCK_START = re.compile(r"\d{1,9}(?=[.)](\s|$))|(?=[-+](\s|$)|--|>|#{1,6}(\s|$))")  # list, rule, quotation, heading


def render_markdown(document: Document, image_folder: str = "") -> str:
    """The page as Markdown, with a final newline. ``image_folder`` such as ``images/``: prefix of image names."""
    return _MarkdownRenderer(document, image_folder).render_blocks(document.titled_blocks) + "\n"


def collect_image_files(document: Document) -> dict[str, bytes]:
    """The content of the image files that `render_markdown` refers to, by name."""
    files: dict[str, bytes] = {}
    for block in document.iterate_blocks():
        if isinstance(block, Figure):
            content = block.content
        elif isinstance(block, (Chart, Scatter)):
            render = render_svg if isinstance(block, Chart) else render_scatter
            content = render(block, standalone=True).encode()  # type: ignore[arg-type]
        else:
            continue
        name = get_image_name(block)
        if files.setdefault(name, content) != content:
            raise ValueError(f"two different images of one page have the name {name!r}; rename one")
    return files


def get_image_name(block: Figure | Chart | Scatter) -> str:
    name = block.name if isinstance(block, Figure) else f"{block.name}.svg"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"an image's name must be a file name without a folder, got {name!r}")
    return name


class _MarkdownRenderer(Renderer):
    style = MarkupStyle(
        escape=lambda text: _escape(text),
        code=lambda code: f"`{code}`",
        link=lambda words, target: f"[{words}]({target})",
    )

    def __init__(self, document: Document, image_folder: str) -> None:
        super().__init__(document)
        self._image_folder = image_folder

    def render_text(self, text: str) -> str:
        # Adjacent pieces of code would be read as one; a comment keeps them apart.
        return super().render_text(text).replace("``", "`<!-- -->`")

    def render_block(self, block: Block) -> str:
        match block:
            case Heading(text, level):
                return f"{'#' * level} {self.render_text(text)}"
            case Paragraph(text):
                return self._render_paragraph(text)
            case ItemList(texts, is_numbered):
                markers = [f"{number}." if is_numbered else "-" for number in range(1, len(texts) + 1)]
                items = map(self._render_paragraph, texts)
                return "\n".join(f"{marker} {item}" for marker, item in zip(markers, items, strict=True))
            case Table():
                return self._render_table(block)
            case CodeBlock(text):
                fence = "`" * max(3, *(len(run) + 1 for run in ["", *re.findall("`+", text)]))
                return f"{fence}\n{clean_lines(text)}\n{fence}"
            case Figure(_, _, caption):
                return f"{self._render_image(block, caption)}\n\n*{self.render_text(caption)}*"
            case Slides(title, figures):
                return self.render_blocks([Paragraph(title), *figures])
            case Chart(_, title) | Scatter(_, title):
                return self._render_image(block, title)
            case Tiles(tiles):
                return self.render_block(ItemList(tuple(map(describe_tile, tiles))))
            case Collapsible(summary, blocks):
                start = f"<details>\n<summary>{escape(strip_markup(summary))}</summary>"
                return f"{start}\n\n{self.render_blocks(blocks)}\n\n</details>"

    def _render_image(self, block: Figure | Chart | Scatter, caption: str) -> str:
        alt_text = _escape(strip_markup(caption).translate({ord("["): "(", ord("]"): ")"}))
        return f"![{alt_text}]({self._image_folder}{get_image_name(block)})"

    def _render_table(self, table: Table) -> str:
        alignment = ["---" if column < table.text_columns else "---:" for column in range(len(table.header))]
        header, *body = [[self._render_cell(text) for text in row] for row in (table.header, *table.rows)]
        rows = [f"| {' | '.join(cells)} |" for cells in (header, alignment, *body)]
        return "\n".join([*([f"*{self.render_text(table.caption)}*\n"] if table.caption else []), *rows])

    def _render_cell(self, text: str) -> str:
        return self.render_text(text).replace("|", "\\|")

    def _render_paragraph(self, text: str) -> str:
        """Render a text; a start that Markdown would read as a list, rule, heading or quotation is escaped."""
        rendered = self.render_text(text)
        start = _BLOCK_START.match(rendered)
        return f"{rendered[: start.end()]}\\{rendered[start.end() :]}" if start else rendered


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda match: "\\" + match[0], text)
