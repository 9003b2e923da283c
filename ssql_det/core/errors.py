"""A user's mistake is one sentence (what, where, what to do) and exit code 2, never a traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3  # of several steps some failed
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do.

    It stays one line that a terminal shows as it is, whatever names a foreign file brought into it.

    >>> raise UserError("bits must be 2 to 16, got 17 in '17w8a'; write for example 8w8a")
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str, most: int | None = None) -> str:
    """Text without control characters, cut in the middle where it is longer than ``most``.

    >>> printable("a\\n\\x1b[31mb" * 9, most=12)
    'a\\\\n\\\\x1...31mb'
    """
    text = text if most is None or len(text) <= most else f"{text[: most // 2]}...{text[len(text) - most // 2 + 3 :]}"
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


@contextmanager
def one_sentence() -> Iterator[None]:
    """The one place where a :class:`UserError`, or a refusal of the machine, becomes a line and exit code 2."""
    try:
        yield
    except UserError as mistake:
        _refuse(mistake)
    except BrokenPipeError:  # the reader of a pipe has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except OSError as failure:  # a full disk, a forbidden folder, a name too long: the machine's no, not a bug
        where = f": {failure.filename}" if failure.filename else ""
        _refuse(UserError(f"{failure.strerror or failure}{where}; check the path, its rights and the disk"))
    except (MemoryError, RuntimeError) as failure:
        if not _is_about_memory(failure):
            raise
        reason = str(failure).partition("\n")[0] or "it is used up"
        _refuse(UserError(f"the memory does not suffice ({reason}); make images, batches or the network smaller"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


def _refuse(mistake: UserError) -> NoReturn:
    print(f"error: {mistake}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_INPUT) from None


def _is_about_memory(failure: Exception) -> bool:
    """Torch says it in words: on the CPU it can't allocate memory, a GPU is out of memory."""
    return isinstance(failure, MemoryError) or bool(re.search("allocate memory|out of memory", str(failure)))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'X'?"`` for the nearest known name, or nothing when none is near.

    >>> did_you_mean("SOLVER.BASE_RL", ["SOLVER.BASE_LR", "SEED"])
    "; did you mean 'SOLVER.BASE_LR'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
