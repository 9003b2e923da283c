"""Loggers in Detectron2's format, coloured on the screen and plain in a file; rate-limited logging."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from types import FrameType
from typing import Any, TextIO

from tabulate import tabulate  # type: ignore[import-untyped]
from termcolor import colored

from .file_io import PathManager

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

ROOT = __name__.removesuffix(".utils.logger")

_LOG_COUNTER: Counter[Hashable] = Counter()
_LOG_TIMER: dict[Hashable, float] = {}


class _ColorfulFormatter(logging.Formatter):
    """Colours levels and abbreviates the root name. It changes the record, so later handlers see it as well."""

    def __init__(self, root_name: str, abbrev_name: str) -> None:
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt="%m/%d %H:%M:%S")
        self._root = f"{root_name}."
        self._abbreviation = f"{abbrev_name}." if abbrev_name else ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.name = record.name.replace(self._root, self._abbreviation)
        message = super().formatMessage(record)
        if record.levelno == logging.WARNING:
            return f"{colored('WARNING', 'red', attrs=['blink'])} {message}"
        if record.levelno in (logging.ERROR, logging.CRITICAL):
            return f"{colored('ERROR', 'red', attrs=['blink', 'underline'])} {message}"
        return message


@functools.cache  # so that a second call adds no second handler
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = ROOT,
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Set up the logger ``name`` at level DEBUG: rank 0 logs to the screen, each rank to its own file.

    ``output`` is a folder, for ``log.txt``, or a file that ends in ``.txt`` or ``.log``; other ranks append
    ``.rank1``, ... to its name. ``abbrev_name`` replaces ``name`` in the lines; it is ``d2`` for the package itself.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == ROOT else name
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S")
    handlers: list[tuple[TextIO, logging.Formatter]] = []
    if configure_stdout and distributed_rank == 0:
        handlers.append((sys.stdout, _ColorfulFormatter(name, abbrev_name) if color else plain))
    if output is not None:
        file = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        handlers.append((_log_stream(f"{file}.rank{distributed_rank}" if distributed_rank > 0 else file), plain))
    for stream, formatter in handlers:
        handler = logging.StreamHandler(stream)
        handler.setLevel(logging.DEBUG)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger


@functools.cache  # loggers of the same file share its stream
def _log_stream(path: str) -> TextIO:
    PathManager.mkdirs(os.path.dirname(path) or ".")
    stream: TextIO = PathManager.open(path, "a", encoding="utf-8", errors="backslashreplace")
    atexit.register(stream.close)
    return stream


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | Iterable[str] = "caller"
) -> None:
    """Log only the first ``n`` times, counted per calling line, per message, or per both, as ``key`` says."""
    kinds = (key,) if isinstance(key, str) else tuple(key)
    assert kinds, "key names 'caller', 'message' or both"
    module, caller = _caller()
    known = (*(caller if "caller" in kinds else ()), *((msg,) if "message" in kinds else ()))
    _LOG_COUNTER[known] += 1
    if _LOG_COUNTER[known] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log every ``n``-th call from a line of code, starting with the first."""
    module, caller = _caller()
    _LOG_COUNTER[caller] += 1
    if (_LOG_COUNTER[caller] - 1) % n == 0:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log at most once in ``n`` seconds for a line of code."""
    module, caller = _caller()
    now = time.time()
    if caller not in _LOG_TIMER or now - _LOG_TIMER[caller] >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _LOG_TIMER[caller] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """A Markdown table of one row of numbers under their names."""
    layout = {"tablefmt": "pipe", "floatfmt": ".3f", "stralign": "center", "numalign": "center"}
    table: str = tabulate([list(small_dict.values())], headers=list(small_dict), **layout)
    return table


def _caller() -> tuple[str, tuple[str, int, str]]:
    """The module and line that called into this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals["__name__"] == __name__:
        frame = frame.f_back
    assert frame is not None
    module: str = frame.f_globals["__name__"]
    where = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
    return ROOT if module == "__main__" else module, where
