"""Write a page that says what few bits cost: result rows of sweeps, searches and probes, and rows of benches.

Rows of several detectors, or of one detector with several schemes, are compared. Rows that differ in seed and
checkpoint alone are averaged. The page is one file that loads nothing from elsewhere. For published figures see
`ssql-det tables`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssql_det.core.rows import Row
    from ssql_det.report.cost_report import Speed

HELP = "a page that says what few bits cost, from result rows"
EXAMPLES = (
    "ssql-det report sweeps/c4",
    "ssql-det report sweeps/c4 sweeps/c4-repaired bench/bench.jsonl --out c4.html",
)
_NAMES = ("results.jsonl", "bench.jsonl")  # of files that are looked for in folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rows",
        nargs="+",
        type=Path,
        metavar="ROWS",
        help=f"files of rows, or folders with {' or '.join(_NAMES)} in them",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE.html", help="default: %(default)s"
    )


def run(options: argparse.Namespace) -> None:
    from ssql_det.core.console import print_outcome, set_up_logging
    from ssql_det.core.errors import UserError
    from ssql_det.core.files import check_not_an_input

    set_up_logging()
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {options.out} must end in .html")
    files = [file for path in options.rows for file in _find_files(path)]
    check_not_an_input(options.out, files)
    _write_page(files, options.out)
    print_outcome(options.out)


def write_page_beside(results: Path) -> Path:
    """Write the page of a file of rows beside it, and return its path: what commands that measure end with."""
    page = results.with_suffix(".html")
    _write_page([results], page)
    return page


def _write_page(files: list[Path], out: Path) -> None:
    """Write the page, and print its first sentence."""
    import shlex
    import sys

    from ssql_det.report.cost_report import build_cost_report, get_headline
    from ssql_det.report.page_files import write_text
    from ssql_det.report.render_html import render_html

    rows, speeds = _read_files(files)
    page = build_cost_report(rows, speeds, shlex.join(["ssql-det", *sys.argv[1:]]))
    write_text(out, render_html(page))
    if headline := get_headline(page):
        print(headline)


def _find_files(path: Path) -> list[Path]:
    from ssql_det.core.errors import UserError

    if not path.exists():
        raise UserError(f"there is no {path}; name files of rows, or folders with {' or '.join(_NAMES)} in them")
    if path.is_file():
        return [path]
    files = sorted(file for name in _NAMES for file in path.rglob(name))
    if not files:
        raise UserError(f"no {' or '.join(_NAMES)} is in the folder {path}; name the OUTPUT_DIR of a sweep or a bench")
    return files


def _read_files(files: list[Path]) -> tuple[list[Row], list[Speed]]:
    from ssql_det.deploy.bench import read_bench_rows
    from ssql_det.report.row_groups import load_rows

    rows, speeds = [], []
    for file in dict.fromkeys(files):
        timed = read_bench_rows(file)
        if timed is None:
            rows += load_rows([file])
        else:
            speeds += [*_make_speeds(timed)]
    return rows, speeds


def _make_speeds(rows) -> Iterator[Speed]:  # type: ignore[no-untyped-def]  # BenchRow, imported when needed
    from ssql_det.report.cost_report import Speed

    for row in rows:
        setting, mb = row.setting, None if row.file_size is None else row.file_size / 1e6
        threads = f"{setting.threads} {'thread' if setting.threads == 1 else 'threads'}"
        machine = f"{setting.cpu}, {threads}, an image of {setting.size[0]}x{setting.size[1]} pixels"
        identity = setting.checkpoint, setting.checkpoint_hash, row.runtime, row.bits
        yield Speed(*identity, milliseconds=row.seconds * 1e3, file_mb=mb, setting=machine)
