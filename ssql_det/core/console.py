"""What a terminal shows: log lines, progress with the time left, tables.

Results go to stdout, so that they can be piped; progress and log lines go to stderr. Without rich, which a detector's
runtime does not need, progress is lines and a table is text.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TypeVar

T = TypeVar("T")

VERBOSE_VARIABLE = "SSQL_DET_VERBOSE"
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal


def set_up_logging(level: int = logging.INFO, names: Sequence[str] = ("ssql_det",)) -> None:
    """Send the log lines of these loggers and of those below them to stderr, each once, whatever was set up before.

    Of several processes only rank 0 logs; the others only warn.
    """
    level = level if _is_rank_zero() else max(level, logging.WARNING)
    for name in names:
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if getattr(handler, "of_ssql_det", False)]:
            logger.removeHandler(handler)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(message)s", "%H:%M:%S"))
        vars(handler)["of_ssql_det"] = True  # an earlier call's handler, which a new call replaces
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def quiet_loggers(levels: Mapping[str, int]) -> None:
    """On rank 0, set the level of each of these loggers; with ``--verbose`` all of them get INFO.

    >>> quiet_loggers({"a_library": logging.WARNING, "a_library.progress": logging.INFO})
    """
    is_verbose = os.environ.get(VERBOSE_VARIABLE, "0") not in ("", "0")
    for name, level in levels.items() if _is_rank_zero() else ():
        logging.getLogger(name).setLevel(logging.INFO if is_verbose else level)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items; on rank 0, show after the label ``what`` how many are done and how long the others will take.

    ``total`` is the number of items, for items without a length.

    >>> sum(track([1, 2, 3], "adding"))
    6
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    if not _is_rank_zero():
        yield from items
        return
    yield from _bar(items, what, total) if sys.stderr.isatty() and _has_rich() else _lines(items, what, total)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a small table to stdout: the first column is text, the others are numbers, aligned right."""
    if not _has_rich():
        _print_plain_table([header, *rows], title)
        return
    import rich.box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(file=sys.stdout, markup=False, emoji=False)  # [bold] is text, not a style
    if not sys.stdout.isatty():
        console.width = 1 << 20  # a pipe has no width to fit into
    console.print(table)


def print_outcome(made: object, *next_command: object) -> None:
    """Print the path of what a command made, and the command that usually comes next."""
    print(f"wrote {made}", flush=True)
    if next_command:
        print_next(*next_command)


def print_next(*command: object) -> None:
    """Print the ``ssql-det`` command that usually comes next to stderr: it is no result."""
    print(f"next: {shlex.join(['ssql-det', *map(str, command)])}", file=sys.stderr)


def _is_rank_zero() -> bool:
    """By the environment: this module does not import torch."""
    return os.environ.get("RANK", "0") == "0"


def _has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def _print_plain_table(rows: Sequence[Sequence[str]], title: str | None) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" " + "   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    print(*([title] if title else []), *lines, sep="\n")


def _bar(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    from rich import progress as bar
    from rich.console import Console

    columns = (
        bar.TextColumn("{task.description}", markup=False),
        bar.BarColumn(),
        bar.MofNCompleteColumn(),
        bar.TimeElapsedColumn(),
        bar.TextColumn("left"),
        bar.TimeRemainingColumn(),
    )
    with bar.Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


def _lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            left = f" of {total}, {(now - start) / done * (total - done):.0f} s left" if total else ""
            print(f"{what}: {done}{left}", file=sys.stderr, flush=True)
