"""A reader of the LaTeX that pages are rendered to; it fails on commands and characters that it does not know."""

import re
from dataclasses import dataclass

LETTER_COMMANDS = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textasciigrave": "`",
    "textquotesingle": "'",
}
FORMULAS = {r"$\pm$": "±", r"$\cdot$": "·", "$-$": "-"}
SILENT_COMMANDS = {
    *("texttt", "emph", "allowbreak", "mbox", "item", "toprule", "midrule", "bottomrule", "addlinespace"),
    *("endhead", "endfoot", "section", "subsection", "subsubsection", "paragraph"),
}
STRUCTURE = re.compile(
    r"""^%\ \\usepackage\{[a-z,]+\}$
    | \\(?:begin|end)\{\w+\}(?:\{[lr]+\})?
    | \\includegraphics\[width=\\linewidth\]\{\w[\w.-]*\}
    | \\shortstack\[r\]
    | \\setlength\{\\tabcolsep\}\{3pt\}%$
    | \\resizebox\{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi\}\{!\}(?=\{%$)""",
    re.VERBOSE | re.MULTILINE,
)
TOKEN = re.compile(r"\\(?P<name>[A-Za-z]+)\*?|\\(?P<sign>.)|(?P<formula>\$[^$]*\$)|(?P<letter>.)", re.DOTALL)
LIGATURES = ("--", ",,", "''", "?`", "!`", "<<", ">>")  # two letters that TeX prints as one
HEADING_OR_TABLE = re.compile(
    r"^\\(?:sub)*section\*\{(?P<heading>.*)\}$"
    r"|\\begin\{(?P<kind>tabular|longtable)\}\{(?P<alignment>[lr]*)\}\n(?P<body>[\s\S]*?)\\end\{(?P=kind)\}",
    re.MULTILINE,
)


def read_words(text):
    """The printed characters, without spaces."""
    text = STRUCTURE.sub("", text).replace("{%\n", "{").replace(r"\symbol{34}", r"\symbol{}")
    printed, depth, last = [], 0, ""
    for token in TOKEN.finditer(text):
        name, sign, formula, letter = token.groups()
        assert last + (letter or "") not in LIGATURES, text
        last = letter or ""
        if name:
            assert name in {*LETTER_COMMANDS, *SILENT_COMMANDS, "symbol"}, f"{name} in {text}"
            printed.append('"' if name == "symbol" else LETTER_COMMANDS.get(name, ""))
        elif sign:
            assert sign in "&%$#_{}\\ ", f"{sign} in {text}"
            printed.append(sign.strip("\\ "))
        elif formula:
            printed.append(FORMULAS[formula])
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            assert depth >= 0, text
        else:
            assert letter not in '%$#_^~"`', f"{letter} in {text}"
            printed.append("" if letter.isspace() or letter == "&" else letter)
    assert depth == 0, text
    return "".join(printed)


@dataclass
class LatexTable:
    """A table and its nearest heading above."""

    heading: str
    kind: str
    alignment: str
    header: list[str]
    rows: list[list[str]]


def read_tables(text):
    """All tables of a text; each row must have as many cells as the alignment has columns."""
    tables, heading = [], ""
    for match in HEADING_OR_TABLE.finditer(text):
        if match["heading"] is not None:
            heading = read_words(match["heading"])
            continue
        lines = match["body"].rstrip("\n").split("\n")
        rules = [line for line in lines if not line.endswith(r" \\")]
        assert rules[:2] == [r"\toprule", r"\midrule"]
        assert set(rules[2:]) <= {r"\addlinespace", r"\bottomrule", r"\endhead", r"\endfoot"}
        assert rules.count(r"\bottomrule") == 1
        rows = [line.removesuffix(r" \\") for line in lines if line.endswith(r" \\")]
        assert not any(row.lstrip().startswith(("[", "*")) for row in rows)  # an option of the row before
        cells = [[read_words(cell) for cell in re.split(r"(?<!\\)&", row)] for row in rows]
        assert {len(row) for row in cells} == {len(match["alignment"])}
        tables.append(LatexTable(heading, match["kind"], match["alignment"], cells[0], cells[1:]))
    return tables
