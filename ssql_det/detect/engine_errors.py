"""The engine's exceptions as answers to a user: its checks speak of configs and files, and a traceback says less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ssql_det.core.errors import UserError, printable

_OF_ENGINE = (ArithmeticError, AssertionError, LookupError, NotImplementedError, OSError, TypeError, ValueError)
_WORKERS_TRACEBACK = re.compile(r"\ACaught (\w+) in DataLoader worker .*^[\w.]*\1: ", re.DOTALL | re.MULTILINE)
_LONGEST = 400  # characters of what is said: some checks list all classes of a data set, twice


@contextmanager
def translate_errors(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what the engine raises about a config or a file into one sentence that begins with ``what``.

    ``more`` are kinds that elsewhere would be bugs; a plain ``Exception`` is how pycocotools refuses.

    >>> with translate_errors("the data set cannot be read"):
    ...     loader = build_detection_test_loader(cfg, "voc_2007_test")
    """
    try:
        yield
    except Exception as failure:
        if type(failure) is not Exception and not isinstance(failure, (*_OF_ENGINE, *more)):
            raise
        said = failure.args[0] if isinstance(failure, KeyError) and failure.args else failure
        reason = " ".join(_WORKERS_TRACEBACK.sub("", str(said)).split()) or type(failure).__name__
        raise UserError(f"{what}: {printable(reason, _LONGEST)}") from failure
