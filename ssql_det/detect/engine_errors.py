"""Translate errors of the engine (Detectron2 or its stand-in) about a user's config or data to ``UserError``.

Use the two context managers only around code that reads data or builds from a config. An error in a forward pass, a
training step or an evaluation is a bug and must keep its traceback.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ssql_det.core.config import flatten_config
from ssql_det.core.errors import UserError, printable
from ssql_det.d2 import CfgNode, is_raised_by_engine

_DATA_ERRORS = (ArithmeticError, AssertionError, LookupError, NotImplementedError, OSError, TypeError, ValueError)
_CONFIG_ERRORS = (ArithmeticError, AssertionError, NotImplementedError, OSError, RuntimeError, ValueError)
_WORKER_TRACEBACK = re.compile(r"\ACaught (\w+) in DataLoader worker .*^[\w.]*\1: ", re.DOTALL | re.MULTILINE)
_MAX_LENGTH = 400  # characters of a message; some of Detectron2's messages list all classes of a data set twice


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Translate errors of reading images or annotations; ``what`` begins the message.

    >>> with translate_errors("photos/a.png cannot be read"):
    ...     raise OSError("cannot identify image file")
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: photos/a.png cannot be read: cannot identify image file
    """
    try:
        yield
    except Exception as failure:
        is_plain_exception = type(failure) is Exception  # as pycocotools raises for invalid annotations
        if not is_plain_exception and not isinstance(failure, _DATA_ERRORS):
            raise
        raise UserError(f"{what}: {_describe(failure)}") from failure


@contextmanager
def translate_config_errors(what: str, cfg: CfgNode) -> Iterator[None]:
    """Translate errors of building from a config, such as an unknown name; ``what`` begins the message.

    Other errors propagate, such as TypeError, AttributeError, or a KeyError that a plug-in raised.

    >>> with translate_config_errors("this config does not describe a detector", CfgNode({"DEPTH": 18})):
    ...     assert 18 in (50, 101), "DEPTH must be 50 or 101"
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: this config does not describe a detector: DEPTH must be 50 or 101
    """
    try:
        yield
    except _CONFIG_ERRORS as failure:
        raise UserError(f"{what}: {_describe(failure)}") from failure
    except KeyError as failure:
        if not is_raised_by_engine(failure):
            raise
        raise UserError(f"{what}: {_describe(failure)}{_find_keys(cfg, failure)}") from failure


def _describe(failure: Exception) -> str:
    """The error's message in one line, without the traceback that a DataLoader worker puts before it."""
    message = _WORKER_TRACEBACK.sub("", str(failure))
    if isinstance(failure, KeyError) and failure.args:
        (key,) = failure.args[:1]
        message = key if " " in str(key) else f"unknown {key!r}"  # the engine also raises KeyError with a sentence
    return printable(" ".join(str(message).split()) or _describe_line(failure), _MAX_LENGTH)


def _describe_line(failure: Exception) -> str:
    """For an error without a message: the line that raised it, as many assertions of Detectron2 have none."""
    frames = traceback.extract_tb(failure.__traceback__)
    return f"{type(failure).__name__} at `{frames[-1].line}`" if frames else type(failure).__name__


def _find_keys(cfg: CfgNode, failure: KeyError) -> str:
    """The config keys whose value the engine did not find, as the end of a message."""
    values = flatten_config(cfg).items()
    keys = [key for key, value in values if failure.args[0] in (value if isinstance(value, list) else [value])]
    return f" (the value of {' and '.join(keys)})" if keys else ""
