"""Pages as LaTeX, read again and compiled if pdflatex is installed."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.report.latex import read_tables, read_words
from support.report.pages import HOSTILE, PAGE, make_hostile_page, make_png
from support.report.rows import make_probe_row, make_row

from ssql_det.report.blocks import Chart, CodeBlock, Collapsible, Curve, Heading, ItemList, Paragraph, Table
from ssql_det.report.comparison import compare_with_published
from ssql_det.report.comparison_blocks import build_comparison_blocks
from ssql_det.report.document import Document
from ssql_det.report.markup import clean_lines, strip_markup
from ssql_det.report.published import TABLE_NUMBERS
from ssql_det.report.render_latex import render_latex

pytestmark = pytest.mark.slow

needs_pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
ROWS = [make_row(60.8), make_row(61.9, seed=1), make_row(method=r"C:\x_1 & 100% #{$}^~", checkpoint_hash="b")]
ROWS += [make_probe_row(90.6), make_probe_row(70.0, "narrow_resnet", method="[1]*")]


def render_part(*blocks):
    return render_latex(Document("", blocks))


def make_table(columns, rows, text_columns=1):
    return Table(
        tuple(map(str, range(columns))), tuple((f"a{n // 3}", *"x" * (columns - 1)) for n in range(rows)), text_columns
    )


def compile_document(folder, text, packages="booktabs,graphicx,longtable"):
    """The log of pdflatex for a document with this part; fails on an error."""
    (folder / "part.tex").write_text(text, "utf-8")
    (folder / "document.tex").write_text(
        f"\\documentclass{{article}}\n\\usepackage{{{packages}}}\n\\begin{{document}}\n\\input{{part}}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "document.tex"]
    for _ in range(2):  # the second run uses the widths of long tables from the first
        process = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
        log = (folder / "document.log").read_text("latin-1")
        assert process.returncode == 0, log[-3000:]
    return log


def test_every_block_is_there():
    text = render_latex(PAGE)
    assert text.startswith("% \\usepackage{booktabs,graphicx}\n\n\\section*{What fewer bits cost}\n")
    assert re.findall(r"\\(\w+)\*\{(.*)\}", text) == [
        ("section", "What fewer bits cost"),
        ("subsection", "Boxes"),
        ("subsubsection", "Boxes"),
        ("paragraph", r"All \texttt{settings}"),
        ("subsubsection", "Settings"),
        ("subsection", "Environment"),
    ]
    assert re.findall(r"\\begin\{(\w+)\}", text) == [
        *("sloppypar", "center", "center", "tabular", "center", "center", "tabular"),  # the chart's values, the table
        *("sloppypar", "itemize", "sloppypar", "enumerate", "center", "sloppypar", "center", "center"),
        *("flushleft", "sloppypar", "flushleft"),
    ]
    assert r"\includegraphics[width=\linewidth]{toy.png}" in text
    assert r"see {the environment}, {again}, {rows} (\texttt{a/\allowbreak{}b.jsonl})" in text
    assert r"on the {published} (\texttt{https:/\allowbreak{}/\allowbreak{}arxiv.org/\allowbreak{}abs/" in text
    assert r"\item one" in text


def test_a_chart_is_a_table_of_its_values():
    chart = Chart(
        "c", "Boxes", ("FP", "4w4a"), (Curve("a_1", (48.84, None), (0.21, None)), Curve("b", (3.0, -1.5))), "AP"
    )
    (table,) = read_tables(render_part(chart))
    assert (table.header, table.rows) == (["", "FP", "4w4a"], [["a_1", "48.84±0.21", "-"], ["b", "3", "-1.5"]])
    assert r"\emph{Boxes (AP)}" in render_part(chart)


def test_the_first_line_names_only_needed_packages():
    assert render_part(Paragraph("one")) == "\\begin{sloppypar}\none\n\\end{sloppypar}\n"
    assert render_part(make_table(4, 30)).splitlines()[0] == r"% \usepackage{booktabs}"
    assert render_part(make_table(4, 31)).splitlines()[0] == r"% \usepackage{booktabs,longtable}"
    assert render_part(make_table(7, 4)).splitlines()[0] == r"% \usepackage{booktabs,graphicx}"


def test_a_long_table_keeps_all_rows_and_repeats_its_header():
    (table,) = read_tables(render_part(make_table(4, 100)))
    assert (table.kind, len(table.rows)) == ("longtable", 100)
    assert (
        render_part(make_table(4, 100)).index(r"\midrule")
        < render_part(make_table(4, 100)).index(r"\endhead")
        < render_part(make_table(4, 100)).index("a0")
    )
    wide = read_tables(render_part(make_table(8, 130)))
    assert [len(each.rows) for each in wide] == [60, 60, 10]
    assert {(each.kind, *each.header) for each in wide} == {("tabular", *"01234567")}


def test_rows_with_the_same_name_are_grouped():
    assert render_part(make_table(3, 7)).count(r"\addlinespace") == 2
    assert r"\addlinespace" not in render_part(Table(("a",), (("1",), ("2",), ("3",))))


def test_text_is_aligned_left_and_numbers_right_with_a_minus_sign():
    text = render_part(
        Table(("method", "bits", "AP50 published"), (("-1", "4w4a", "-0.4"), ("b", "FP", "-")), text_columns=2)
    )
    assert r"\begin{tabular}{llr}" in text
    assert r"method & bits & \shortstack[r]{AP50\\published} \\" in text
    assert "-1 & 4w4a & $-$0.4 \\\\\nb & FP & - \\\\" in text


@given(st.text("ab1 *_`[]()<>&;#!-+=|~\\{}%$^\"',.:/?±·", min_size=1))
def test_any_text_is_rendered_unchanged(text):
    """Except for spaces."""
    expected = "".join(strip_markup(text).split())
    for block in (Paragraph(text), Heading(text), ItemList((text,)), Collapsible(text, ())):
        assert read_words(render_part(block)) == expected, block
    (table,) = read_tables(render_part(Table((text, text), ((text, text),))))
    assert [*table.header, *table.rows[0]] == [expected] * 4
    assert read_words(render_part(CodeBlock(text))) == "".join(clean_lines(text).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_and_add_no_commands(text):
    words = read_words(render_latex(make_hostile_page(text)))
    if not set("`!\x00") & set(text):
        assert words.count("".join(text.split())) >= 20


@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_a_comparison_is_valid(number):
    text = render_part(*build_comparison_blocks(compare_with_published(number, ROWS)))
    assert read_words(text)
    assert all(len(table.header) == len(table.alignment) for table in read_tables(text))


@needs_pdflatex
@pytest.mark.parametrize("number", TABLE_NUMBERS)
def test_pdflatex_compiles_each_table_without_overfull_boxes(number, tmp_path):
    text = render_part(*build_comparison_blocks(compare_with_published(number, ROWS)))
    packages = re.match(r"% \\usepackage\{(.*)\}", text)[1]
    log = compile_document(tmp_path, text, packages)
    assert [float(width) for width in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log) if float(width) > 3] == []
    assert "Overfull \\vbox" not in log


@needs_pdflatex
def test_pdflatex_compiles_every_block_and_hostile_texts(tmp_path):
    pages = [PAGE, *map(make_hostile_page, HOSTILE)]
    (tmp_path / "toy.png").write_bytes(make_png())
    compile_document(tmp_path, "\n".join(map(render_latex, pages)))
