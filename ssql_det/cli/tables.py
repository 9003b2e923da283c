"""Print the published tables beside result rows: the published value, our mean over seeds, the difference.

A table is of one dataset and one scope. An empty cell has the number of the command that measures it, or says
"published only" where no command can yet.
"""

from __future__ import annotations

import argparse
import sys

from ssql_det.cli.arguments import positive_int

HELP = "print the published tables beside your results"
EXAMPLES = (
    "ssql-det tables --table 6 --rows sweeps/c4/results.jsonl --dataset toy_voc_2007_test",
    "ssql-det tables --table all --rows sweeps/c4/results.jsonl probes/results.jsonl --format latex --out tables.tex",
)
FORMATS = ("markdown", "csv", "latex")
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        nargs="+",
        action="extend",
        type=_parse_table,
        required=True,
        metavar="N",
        help="1, 3, 8, 12: linear probes; 6: VOC2007; 7: COCO2017; 4, 5, 13: published only; or all",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        action="extend",
        default=[],
        metavar="results.jsonl",
        help="result files of sweeps and probes (default: none; then all cells are empty)",
    )
    parser.add_argument(
        "--scope",
        metavar="all|backbone",
        default="all",
        help="which modules of detectors were quantized (default: %(default)s); probes always have backbone",
    )
    parser.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="dataset, named as in the result files (default: the published one)",
    )
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE", help="write all tables to this file (default: print them)")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import set_up_logging
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import check_not_an_input
    from ssql_det.report.comparison import SCOPES, compare_with_published
    from ssql_det.report.comparison_blocks import build_comparison_blocks
    from ssql_det.report.document import Document
    from ssql_det.report.page_files import write_text
    from ssql_det.report.published import TABLE_NUMBERS
    from ssql_det.report.render_csv import render_csv
    from ssql_det.report.render_latex import render_latex
    from ssql_det.report.render_markdown import render_markdown
    from ssql_det.report.row_groups import load_rows

    set_up_logging()
    if options.scope not in SCOPES:
        raise UserError(f"--scope must be {' or '.join(SCOPES)}, got {options.scope!r}")
    if options.out is not None:
        check_not_an_input(options.out, options.rows)
    numbers = TABLE_NUMBERS if ALL in options.table else tuple(dict.fromkeys(options.table))
    rows = load_rows(options.rows)
    comparisons = [compare_with_published(number, rows, options.scope, options.dataset) for number in numbers]
    if options.format == "csv":
        text = render_csv(*comparisons)
    else:
        document = Document("", tuple(block for each in comparisons for block in build_comparison_blocks(each)))
        text = render_latex(document) if options.format == "latex" else render_markdown(document)
    if options.out is None:
        sys.stdout.write(text)
        return
    write_text(options.out, text)
    for comparison in comparisons:
        scope = f", scope {comparison.scope}" if comparison.scope else ""
        print(f"{options.out}: Table {comparison.number}, {comparison.dataset}{scope}", file=sys.stderr)


def _parse_table(text: str) -> int | str:
    return ALL if text == ALL else positive_int(text)
