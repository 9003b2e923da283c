"""A user's mistake is one sentence (what, where, what to do) and exit code 2, never a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do.

    >>> raise UserError("bits must be 2 to 16, got 17 in '17w8a'; write for example 8w8a")
    """


@contextmanager
def one_sentence() -> Iterator[None]:
    """The one place where a :class:`UserError` becomes a line on stderr and exit code 2."""
    try:
        yield
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'X'?"`` for the nearest known name, or nothing when none is near.

    >>> did_you_mean("SOLVER.BASE_RL", ["SOLVER.BASE_LR", "SEED"])
    "; did you mean 'SOLVER.BASE_LR'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
