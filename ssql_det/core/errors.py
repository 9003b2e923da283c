"""How a command ends when something fails: a user's mistake is one sentence, a bug is a traceback.

====================================  =========================================================  =========
what failed                           what stderr shows                                          exit code
====================================  =========================================================  =========
a mistake (:class:`UserError`), a     ``error: SENTENCE``; before it one line on the exception   2
full disk, too little memory          that caused it; with ``SSQL_DET_DEBUG=1`` the traceback
a bug: any other exception            the traceback, then where to report it                     1
Ctrl-C, SIGTERM, SIGHUP               one line                                                   130, 143, 129
a write to stdout, as the reader of   nothing, when the work is done                             141
the pipe, such as ``head``, has ended
another write to stdout               ``error: SENTENCE``, when the work is done                 2
====================================  =========================================================  =========
"""

from __future__ import annotations

import difflib
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from ssql_det.core.streams import flush_stdout, make_streams_lenient

EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3  # of several steps some failed
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

DEBUG_VARIABLE = "SSQL_DET_DEBUG"
REPORT_LINE = "this is a bug in ssql_det or in a plugin: please report it with the lines above and `ssql-det --version`"
_MAX_CAUSE_LENGTH = 300  # characters of an exception's text
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_OUT_OF_MEMORY = re.compile(r"\[enforce fail at alloc_cpu\.cpp:\d+\].*DefaultCPUAllocator: |CUDA error: out of memory")


class UserError(Exception):
    """Something the user can correct. The message says what is wrong, where, and what to do.

    Control characters, which a name in a foreign file may contain, are escaped, so the message is a single line.

    >>> raise UserError("bits must be 2 to 16, got 17 in '17w8a'; write for example 8w8a")
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: bits must be 2 to 16, got 17 in '17w8a'; write for example 8w8a
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class Terminated(BaseException):
    """SIGTERM, or SIGHUP of a closed terminal, arrived. As ``KeyboardInterrupt``, it is no ``Exception``."""

    def __init__(self, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def printable(text: str, most: int | None = None) -> str:
    r"""Escape control characters; before that, a text of more than ``most`` characters is cut in the middle.

    >>> printable("a\n\x1b[31mb" * 9, most=12)
    'a\\n\\x1b[31...1mb'
    """
    text = text if most is None or len(text) <= most else f"{text[: most // 2]}...{text[len(text) - most // 2 + 3 :]}"
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn every exception and every failed write to stdout into the output and the exit code of the table above."""
    make_streams_lenient()
    try:
        try:
            yield
        except SystemExit as stop:
            if not stop.code:
                _check_stdout()
            raise
        else:
            _check_stdout()
    except UserError as mistake:
        _report_mistake(mistake, mistake.__cause__)
    except KeyboardInterrupt:
        _report_signal("interrupted", EXIT_INTERRUPTED)
    except Terminated as termination:
        _report_signal("terminated", 128 + termination.signal_number)
    except Exception as failure:
        machine_failure = _describe_machine_failure(failure)
        if machine_failure is None:
            _report_bug(failure)
        _report_mistake(machine_failure, failure)


@contextmanager
def raising_on_termination() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise :class:`Terminated`, so that files and child processes are cleaned up.

    SIGHUP is left ignored if it is, as under ``nohup``. Signal handlers belong to the main thread; in any other thread
    this does nothing.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGHUP) if is_main_thread else ()
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, _raise_terminated)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'X'?"`` for the most similar known name, or nothing when none is similar.

    >>> did_you_mean("SOLVER.BASE_RL", ["SOLVER.BASE_LR", "SEED"])
    "; did you mean 'SOLVER.BASE_LR'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_stdout() -> None:
    failure = flush_stdout()
    if isinstance(failure, BrokenPipeError):
        raise SystemExit(EXIT_BROKEN_PIPE)
    if failure is not None:
        reason = failure.strerror or failure
        raise UserError(f"could not write to stdout: {reason}; redirect it elsewhere and run the command again")


def _raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(signum)


def _describe_machine_failure(failure: Exception) -> UserError | None:
    """The sentence for a full disk, a path that cannot be used or too little memory; ``None`` for a bug."""
    if isinstance(failure, OSError) and failure.errno is not None:
        path = failure.filename
        if path is not None or failure.errno in _DISK_ERRORS:
            where = "" if path is None else f": {os.fsdecode(path) if isinstance(path, bytes) else path}"
            return UserError(f"{failure.strerror}{where}; check the path, its permissions and the disk")
    if _is_out_of_memory(failure):
        reason = str(failure).partition("\n")[0] or "the machine has no more"
        return UserError(f"out of memory ({reason}); make images, batches or the network smaller")
    return None


def _is_out_of_memory(failure: Exception) -> bool:
    """Python and torch's GPU allocator have a class for it; torch's CPU allocator only has words."""
    if isinstance(failure, MemoryError):
        return True
    classes = {f"{each.__module__}.{each.__name__}" for each in type(failure).__mro__}
    if classes & {"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError"}:
        return True
    return isinstance(failure, RuntimeError) and _OUT_OF_MEMORY.match(str(failure)) is not None


def _report_mistake(mistake: UserError, cause: BaseException | None) -> NoReturn:
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(mistake if cause is mistake.__cause__ else cause)
    if cause is not None:
        print(f"caused by {_describe_cause(cause)}", file=sys.stderr)
    print(f"error: {mistake}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT) from None


def _describe_cause(cause: BaseException) -> str:
    """Its type, text and the line that raised it."""
    frames = traceback.extract_tb(cause.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = printable(" ".join(str(cause).split()), _MAX_CAUSE_LENGTH)
    return printable(f"{type(cause).__name__}: {text}{where}" if text else f"{type(cause).__name__}{where}")


def _report_bug(failure: Exception) -> NoReturn:
    traceback.print_exception(failure)
    print(REPORT_LINE, file=sys.stderr)
    raise SystemExit(EXIT_BUG) from None


def _report_signal(line: str, code: int) -> NoReturn:
    is_child = multiprocessing.parent_process() is not None  # then its parent says it
    if os.environ.get("RANK", "0") == "0" and not is_child:  # one process of a job is enough
        print(line, file=sys.stderr)
    raise SystemExit(code) from None
