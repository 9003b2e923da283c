r"""A page as a part of a LaTeX document, for ``\input``; pictures are files beside it, charts are tables of values.

The first line names the packages that it needs. A long table goes over pages, a wide one is narrowed to the line.
Letters that pdfLaTeX does not have need XeLaTeX or LuaLaTeX.

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
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

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
from ssql_det.report.markup import Style, clean_lines, render_markup
from ssql_det.report.render_markdown import image_file_name

_PACKAGES = {"booktabs": r"\toprule", "graphicx": r"\includegraphics \resizebox", "longtable": r"\begin{longtable}"}
_NARROWED = r"""\setlength{{\tabcolsep}}{{3pt}}%
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
{}}}"""
_SECTIONS = ("section", "subsection", "subsubsection", "paragraph")
_MOST_COLUMNS, _MOST_ROWS = 6, 30  # of a table that has room on a page
_SPECIAL = re.compile(
    r"""[\\{}$&#%_^~<>|"`±·]
    | -(?=-) | ,(?=,) | '(?=')  # pairs become one letter
    | ^[\[*]  # at the beginning of a row or an item: an option of what stands before""",
    re.VERBOSE,
)
_WRITTEN = {
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
    """The whole text, with a newline at its end. Of links, those within the page are their words alone."""
    text = _Writer(document.anchors).blocks(document.with_title)
    used = [name for name, commands in _PACKAGES.items() if any(command in text for command in commands.split())]
    return f"% \\usepackage{{{','.join(used)}}}\n\n{text}\n" if used else f"{text}\n"


@dataclass(frozen=True)
class _Writer:
    anchors: Collection[str]

    def blocks(self, blocks: Sequence[Block]) -> str:
        return "\n\n".join(map(self.block, blocks))

    def block(self, block: Block) -> str:
        match block:
            case Heading(text, level):
                return f"\\{_SECTIONS[min(level, len(_SECTIONS)) - 1]}*{{{self.text(text)}}}"
            case Paragraph(text):
                return _within("sloppypar", self.text(text))
            case ItemList(texts, is_numbered):
                items = "\n".join(f"\\item {self.text(text)}" for text in texts)
                listed = _within("enumerate" if is_numbered else "itemize", items)
                return _within("sloppypar", listed) if texts else ""
            case Table():
                return self.table(block)
            case CodeBlock(text):
                rows = (r"\mbox{}" + _code(line).replace(" ", r"\ ") for line in clean_lines(text).split("\n"))
                return _within("flushleft", "\\\\\n".join(rows))
            case Figure(_, _, words):
                image = f"\\includegraphics[width=\\linewidth]{{{image_file_name(block)}}}"
                return _within("center", f"{image}\n\n\\emph{{{self.text(words)}}}")
            case Chart():
                return self.table(_figures(block))
            case Collapsible(summary, blocks):
                return f"\\paragraph*{{{self.text(summary)}}}\n\n{self.blocks(blocks)}"

    def table(self, table: Table) -> str:
        is_wide, is_long = len(table.header) > _MOST_COLUMNS, len(table.rows) > _MOST_ROWS
        if is_wide and len(table.rows) > 2 * _MOST_ROWS:  # what is narrowed cannot go over pages
            head, tail = table.rows[: 2 * _MOST_ROWS], table.rows[2 * _MOST_ROWS :]
            return self.blocks([replace(table, rows=head), replace(table, rows=tail, caption="")])
        names = min(table.names, len(table.header))
        spec = "l" * names + "r" * (len(table.header) - names)
        top = ["\\toprule", self.row(map(self.heading, table.header), names), "\\midrule"]
        rows = "\n\\addlinespace\n".join(
            "\n".join(self.row(map(self.text, row), names) for row in of_name) for of_name in _by_name(table.rows)
        )
        if is_long and not is_wide:
            top += ["\\endhead", "\\bottomrule", "\\endfoot"]
            drawn = _within("small", _within("longtable", "\n".join([*top, rows]), spec))
        else:
            drawn = _within("tabular", "\n".join([*top, rows, "\\bottomrule"]), spec)
            drawn = _within("center", _NARROWED.format(drawn) if is_wide else drawn)
        caption = [_within("center", f"\\emph{{{self.text(table.caption)}}}")] if table.caption else []
        return "\n\n".join([*caption, drawn])

    def heading(self, text: str) -> str:
        """Two words stand on two lines, for columns of figures are narrow."""
        above, _, below = text.rpartition(" ")
        if not above or "`" in text or "](" in text:
            return self.text(text)
        return f"\\shortstack[r]{{{self.text(above)}\\\\{self.text(below)}}}"

    def row(self, written: Iterable[str], names: int) -> str:
        cells = list(written)
        figures = (re.sub(r"^-(?=[\d.])", "$-$", text) for text in cells[names:])
        return " & ".join([*cells[:names], *figures]) + r" \\"

    def text(self, text: str) -> str:
        return render_markup(text, _STYLE, self.anchors)


def _by_name(rows: Sequence[Sequence[str]]) -> list[list[Sequence[str]]]:
    """Rows that follow one another and begin alike; all rows, if none do."""
    names = [list(of_name) for _, of_name in itertools.groupby(rows, key=lambda row: row[0])]
    return names if len(names) < len(rows) else [list(rows)]


def _figures(chart: Chart) -> Table:
    """The values that are drawn."""
    rows = []
    for curve in chart.curves:
        spreads = curve.spread or (None,) * len(curve.values)
        figures = (
            "-" if value is None else f"{value:.4g}" + (f" ± {spread:.2g}" if spread else "")
            for value, spread in zip(curve.values, spreads, strict=True)
        )
        rows.append((curve.name, *figures))
    caption = f"{chart.title} ({chart.unit})" if chart.unit else chart.title
    return Table(("", *chart.places), tuple(rows), caption=caption)


def _within(environment: str, text: str, spec: str = "") -> str:
    columns = f"{{{spec}}}" if spec else ""
    return f"\\begin{{{environment}}}{columns}\n{text}\n\\end{{{environment}}}"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: _WRITTEN.get(found[0], "\\" + found[0]), text)


def _code(code: str) -> str:
    """Quotes are straight, as a shell needs them; lines break at spaces and behind slashes."""
    straight = r"\textquotesingle{}".join(map(_escaped, code.split("'")))
    return r"\texttt{" + straight.replace("/", r"/\allowbreak{}") + "}"


_STYLE = Style(
    words=_escaped,
    code=_code,
    link=lambda words, target: f"{{{words}}}" if target.startswith("#") else f"{{{words}}} ({_code(target)})",
)
