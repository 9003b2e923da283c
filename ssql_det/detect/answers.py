"""The engine's exceptions as answers to a user: its checks speak of configs and files, and a traceback says less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ssql_det.core.errors import UserError

_OF_ENGINE = (ArithmeticError, AssertionError, KeyError, NotImplementedError, OSError, ValueError)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Turn what the engine raises about a config or a file into one sentence that begins with ``what``.

    >>> with answered("the data set cannot be read"):
    ...     loader = build_detection_test_loader(cfg, "voc_2007_test")
    """
    try:
        yield
    except _OF_ENGINE as failure:
        said = failure.args[0] if isinstance(failure, KeyError) and failure.args else failure
        reason = " ".join(str(said).split()) or type(failure).__name__
        raise UserError(f"{what}: {reason}") from failure
