"""A reader of the LaTeX that pages are written in; what it does not know, or TeX takes for something else, fails."""

import re
from dataclasses import dataclass

LETTERS = {
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
SILENT = {
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
PIECE = re.compile(
    r"^\\(?:sub)*section\*\{(?P<heading>.*)\}$"
    r"|\\begin\{(?P<kind>tabular|longtable)\}\{(?P<spec>[lr]*)\}\n(?P<body>[\s\S]*?)\\end\{(?P=kind)\}",
    re.MULTILINE,
)


def read_words(text):
    """The letters that are printed, without spaces."""
    text = STRUCTURE.sub("", text).replace("{%\n", "{").replace(r"\symbol{34}", r"\symbol{}")
    found, depth, last = [], 0, ""
    for token in TOKEN.finditer(text):
        name, sign, formula, letter = token.groups()
        assert last + (letter or "") not in LIGATURES, text
        last = letter or ""
        if name:
            assert name in {*LETTERS, *SILENT, "symbol"}, f"{name} in {text}"
            found.append('"' if name == "symbol" else LETTERS.get(name, ""))
        elif sign:
            assert sign in "&%$#_{}\\ ", f"{sign} in {text}"
            found.append(sign.strip("\\ "))
        elif formula:
            found.append(FORMULAS[formula])
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            assert depth >= 0, text
        else:
            assert letter not in '%$#_^~"`', f"{letter} in {text}"
            found.append("" if letter.isspace() or letter == "&" else letter)
    assert depth == 0, text
    return "".join(found)


@dataclass
class Grid:
    """A table below its nearest heading."""

    heading: str
    kind: str
    spec: str
    header: list[str]
    rows: list[list[str]]


def read_tables(text):
    """All tables of a text; each row has as many cells as the table says."""
    found, heading = [], ""
    for piece in PIECE.finditer(text):
        if piece["heading"] is not None:
            heading = read_words(piece["heading"])
            continue
        lines = piece["body"].rstrip("\n").split("\n")
        rules = [line for line in lines if not line.endswith(r" \\")]
        assert rules[:2] == [r"\toprule", r"\midrule"]
        assert set(rules[2:]) <= {r"\addlinespace", r"\bottomrule", r"\endhead", r"\endfoot"}
        assert rules.count(r"\bottomrule") == 1
        rows = [line.removesuffix(r" \\") for line in lines if line.endswith(r" \\")]
        assert not any(row.lstrip().startswith(("[", "*")) for row in rows)  # an option of the row before
        cells = [[read_words(cell) for cell in re.split(r"(?<!\\)&", row)] for row in rows]
        assert {len(row) for row in cells} == {len(piece["spec"])}
        found.append(Grid(heading, piece["kind"], piece["spec"], cells[0], cells[1:]))
    return found
