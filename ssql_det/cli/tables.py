"""Set result rows beside the published tables: the figure, our mean over all seeds, the difference.

One scope and one data set a table; nothing else is mixed in. An empty cell says which command fills it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ssql_det.cli.numbers import positive

HELP = "the published detection tables beside our rows"
FORMATS = ("markdown", "csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", type=positive, required=True, metavar="6|7", help="6: VOC2007; 7: COCO2017")
    parser.add_argument(
        "--rows",
        nargs="+",
        action="extend",
        default=[],
        metavar="results.jsonl",
        help="files of rows (default: none, which shows what there is to fill)",
    )
    parser.add_argument(
        "--scope", default="all", help="which modules were quantized: all or backbone (default: %(default)s)"
    )
    parser.add_argument("--dataset", default="", metavar="NAME", help="as rows name it (default: the published one)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE", help="write there (default: to the terminal)")


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import set_up_logging
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import atomic_write
    from ssql_det.report.as_csv import as_csv
    from ssql_det.report.as_markdown import as_markdown
    from ssql_det.report.comparison import blocks_of
    from ssql_det.report.document import Document
    from ssql_det.report.reading import read_rows
    from ssql_det.report.tables import SCOPES, compare

    set_up_logging()
    if options.scope not in SCOPES:
        raise UserError(f"--scope is {' or '.join(SCOPES)}, got {options.scope!r}")
    if options.out is not None and any(_same(options.out, path) for path in options.rows):
        raise UserError(f"--out {options.out} is a file of rows; writing there would lose them, so name another")
    table = compare(options.table, read_rows(options.rows), options.scope, options.dataset)
    text = as_csv(table) if options.format == "csv" else as_markdown(Document("", blocks_of(table)))
    if options.out is None:
        sys.stdout.write(text)
        return
    with atomic_write(options.out, "w") as file:
        file.write(text)
    print(f"{options.out}: Table {table.number}, {table.dataset}, scope {table.scope}", file=sys.stderr)


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
