r"""A page as part of a LaTeX document, for ``\input``. Images are separate files, charts become tables of values.

The first line lists the required packages. A long table breaks over pages, a wide table is shrunk to the line width.
Letters outside of pdfLaTeX's fonts need XeLaTeX or LuaLaTeX.

>>> print(render_latex(Document("", (Table(("method", "difference"), (("SSQL_200", "-0.4"),)),))))
% \usepackage{booktabs}
<BLANKLINE>
\begin{center}
\begin{tabular}{lr}
\toprule
method & difference \\
\midrule
SSQL\_200 & $-$0.4 \\
\bottomrule
\end{tabular}
\end{center}
<BLANKLINE>
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

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
from ssql_det.report.document import Document, Renderer
from ssql_det.report.markup import MarkupStyle, clean_lines
from ssql_det.report.render_markdown import get_image_name

# Packages and the commands that need them
_PACKAGES = {"booktabs": r"\toprule", "graphicx": r"\includegraphics \resizebox", "longtable": r"\begin{longtable}"}
# A format string, hence the double braces: shrinks a table to the line width if it is wider
_SHRINK = r"""\setlength{{\tabcolsep}}{{3pt}}%
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
{}}}"""
_SECTIONS = ("section", "subsection", "subsubsection", "paragraph")
_MAX_COLUMNS, _MAX_ROWS = 6, 30  # largest table that is neither shrunk nor broken over pages
_SPECIAL = re.compile(
    r"""[\\{}$&#%_^~<>|"`±·]
    | -(?=-) | ,(?=,) | '(?=')  # TeX joins such pairs into one letter
    | ^[\[*]  # at the start of a row or item TeX would read an option of the preceding command""",
    re.VERBOSE,
)
_REPLACEMENTS = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "*": "{*}",
    "-": "-{}",
    ",": ",{}",
    "'": "'{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
}


def render_latex(document: Document) -> str:
    """The page as LaTeX, with a final newline. Links within the page become plain text."""
    text = _LatexRenderer(document).render_blocks(document.titled_blocks)
    packages = [name for name, commands in _PACKAGES.items() if any(command in text for command in commands.split())]
    return f"% \\usepackage{{{','.join(packages)}}}\n\n{text}\n" if packages else f"{text}\n"


class _LatexRenderer(Renderer):
    style = MarkupStyle(
        escape=lambda text: _escape(text),
        code=lambda code: _render_code(code),
        link=lambda words, target: f"{{{words}}}" + ("" if target.startswith("#") else f" ({_render_code(target)})"),
    )

    def render_block(self, block: Block) -> str:
        match block:
            case Heading(text, level):
                return f"\\{_SECTIONS[min(level, len(_SECTIONS)) - 1]}*{{{self.render_text(text)}}}"
            case Paragraph(text):
                return _wrap("sloppypar", self.render_text(text))
            case ItemList(texts, is_numbered):
                items = "\n".join(f"\\item {self.render_text(text)}" for text in texts)
                item_list = _wrap("enumerate" if is_numbered else "itemize", items)
                return _wrap("sloppypar", item_list) if texts else ""
            case Table():
                return self._render_table(block)
            case CodeBlock(text):
                rows = (r"\mbox{}" + _render_code(line).replace(" ", r"\ ") for line in clean_lines(text).split("\n"))
                return _wrap("flushleft", "\\\\\n".join(rows))
            case Figure(_, _, caption):
                image = f"\\includegraphics[width=\\linewidth]{{{get_image_name(block)}}}"
                return _wrap("center", f"{image}\n\n\\emph{{{self.render_text(caption)}}}")
            case Slides(title, figures):
                return self.render_blocks([Paragraph(title), *figures])
            case Chart():
                return self._render_table(_tabulate_chart(block))
            case Scatter():
                return self._render_table(_tabulate_scatter(block))
            case Tiles(tiles):
                return self.render_block(ItemList(tuple(map(describe_tile, tiles))))
            case Collapsible(summary, blocks):
                return f"\\paragraph*{{{self.render_text(summary)}}}\n\n{self.render_blocks(blocks)}"

    def _render_table(self, table: Table) -> str:
        is_wide, is_long = len(table.header) > _MAX_COLUMNS, len(table.rows) > _MAX_ROWS
        if is_wide and len(table.rows) > 2 * _MAX_ROWS:  # a table that is shrunk cannot break over pages
            head, tail = table.rows[: 2 * _MAX_ROWS], table.rows[2 * _MAX_ROWS :]
            return self.render_blocks([replace(table, rows=head), replace(table, rows=tail, caption="")])
        text_columns = min(table.text_columns, len(table.header))
        alignment = "l" * text_columns + "r" * (len(table.header) - text_columns)
        top = ["\\toprule", _join_cells(map(self._render_header_cell, table.header), text_columns), "\\midrule"]
        rows = "\n\\addlinespace\n".join(
            "\n".join(_join_cells(map(self.render_text, row), text_columns) for row in group)
            for group in _group_by_first_cell(table.rows)
        )
        if is_long and not is_wide:
            top += ["\\endhead", "\\bottomrule", "\\endfoot"]
            rendered = _wrap("small", _wrap("longtable", "\n".join([*top, rows]), alignment))
        else:
            rendered = _wrap("tabular", "\n".join([*top, rows, "\\bottomrule"]), alignment)
            rendered = _wrap("center", _SHRINK.format(rendered) if is_wide else rendered)
        caption = [_wrap("center", f"\\emph{{{self.render_text(table.caption)}}}")] if table.caption else []
        return "\n\n".join([*caption, rendered])

    def _render_header_cell(self, text: str) -> str:
        """A header cell with a line break before its last word, since columns of numbers are narrow."""
        above, _, below = text.rpartition(" ")
        if not above or "`" in text or "](" in text:
            return self.render_text(text)
        return f"\\shortstack[r]{{{self.render_text(above)}\\\\{self.render_text(below)}}}"


def _join_cells(rendered: Iterable[str], text_columns: int) -> str:
    cells = list(rendered)
    numbers = (re.sub(r"^-(?=[\d.])", "$-$", text) for text in cells[text_columns:])
    return " & ".join([*cells[:text_columns], *numbers]) + r" \\"


def _group_by_first_cell(rows: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """Groups of adjacent rows with the same first cell; a single group if no adjacent rows have the same."""
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row[0])]
    return groups if len(groups) < len(rows) else [list(rows)]


def _tabulate_chart(chart: Chart) -> Table:
    rows = []
    for curve in chart.curves:
        deviations = curve.std or (None,) * len(curve.values)
        cells = (
            "-" if value is None else f"{value:.4g}" + (f" ± {deviation:.2g}" if deviation else "")
            for value, deviation in zip(curve.values, deviations, strict=True)
        )
        rows.append((curve.name, *cells))
    caption = f"{chart.title} ({chart.y_label})" if chart.y_label else chart.title
    return Table(("", *chart.x_labels), tuple(rows), caption=caption)


def _tabulate_scatter(chart: Scatter) -> Table:
    rows = tuple((series.name, f"{x:.4g}", f"{y:.4g}") for series in chart.series for x, y in series.points)
    return Table(("", chart.x_label, chart.y_label), rows, caption=chart.title)


def _wrap(environment: str, text: str, alignment: str = "") -> str:
    columns = f"{{{alignment}}}" if alignment else ""
    return f"\\begin{{{environment}}}{columns}\n{text}\n\\end{{{environment}}}"


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda match: _REPLACEMENTS.get(match[0], "\\" + match[0]), text)


def _render_code(code: str) -> str:
    """Code with straight quotes, as a shell needs them; lines may break at spaces and after slashes."""
    straight = r"\textquotesingle{}".join(map(_escape, code.split("'")))
    return r"\texttt{" + straight.replace("/", r"/\allowbreak{}") + "}"
