"""Which values a config key takes: those of its default's type, within its bounds.

A text where another type belongs is read as Python writes values, because YAML has no tuples and no ``1e-3``, and a
command line has only texts. A whole number serves as a number, and a list as a tuple, as in Detectron2's configs.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ssql_det.core.errors import UserError, printable

_MAX_FLOAT = 3.4e38  # of a float32; this also refuses infinity
_MAX_INT = 1 << 32  # steps, sizes, seeds: with a larger value a run never ends or does not fit into memory
_MAX_VALUES = 10_000  # in a list
_MAX_TEXT = 4096  # characters; no path is longer
_MAX_SHOWN = 80  # characters of a value in a message
_ANY_DEPTH = 3  # of nested lists, where the default is None or an empty list
_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
_PLURALS = {bool: "True or False", int: "whole numbers", float: "numbers", str: "texts"}


@dataclass(frozen=True)
class Bounds:
    """What restricts the values of a key beside the type of its default.

    In a list, ``least``, ``most`` and ``choices`` are those of each value.

    >>> fit_value("SIZES", [0], [8], Bounds(least=1))
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: SIZES must be a list of whole numbers, each 1 or more, got [0]; the default is [8]
    """

    least: float = -_MAX_FLOAT
    most: float = _MAX_FLOAT
    choices: Collection[str] = ()  # empty: any text
    length: int = 0  # of a list; 0: any
    is_empty_valid: bool = True  # for a list, and for each list in it
    is_none_valid: bool = False  # it always is where the default is None
    like: Any = None  # a value whose type counts instead of the default's, such as None's or an empty list's


BoundsByKey = Mapping[str, Bounds]
"""By key, or by a pattern of keys such as ``MODEL.*.NUM_CLASSES``; of several that match, the first one counts."""


def find_bounds(key: str, bounds: BoundsByKey) -> Bounds:
    """The bounds of a key. Without any, the type of its default alone decides.

    >>> find_bounds("MODEL.RETINANET.NUM_CLASSES", {"MODEL.*.NUM_CLASSES": Bounds(least=1)}).least
    1
    """
    return next((found for pattern, found in bounds.items() if fnmatchcase(key, pattern)), Bounds())


def fit_value(key: str, value: Any, default: Any, bounds: Bounds, where: str = "") -> Any:
    """The value in the type of the key's default; a ``UserError`` if the key does not take it.

    ``where`` follows the value in the message, for example " in my.yaml".

    >>> fit_value("STEPS", "[60, 80]", (), Bounds()), fit_value("LR", "1e-3", 0.1, Bounds())
    ((60, 80), 0.001)
    >>> fit_value("SEED", None, 0, Bounds())
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: SEED must be a whole number, got None; the default is 0
    """
    fitted = _convert(value, default)
    if fitted is None and (default is None or bounds.is_none_valid):
        return None
    model = default if bounds.like is None else bounds.like
    if isinstance(model, (list, tuple)) or (model is None and isinstance(fitted, (list, tuple))):
        requirement = _check_list(fitted, model or (), bounds)
    else:
        requirement = _check_single(fitted, _NAMES if model is None else (type(model),), bounds)
    if requirement:
        raise UserError(f"{key} must be {requirement}, got {show(fitted)}{where}; the default is {show(default)}")
    return fitted


def parse_literal(text: str) -> Any:
    """The value that a text writes in Python's syntax; any other text is itself.

    >>> parse_literal("(1, 2)"), parse_literal("voc")
    ((1, 2), 'voc')
    """
    try:
        return ast.literal_eval(text)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):  # the first two: nested too deeply
        return text


def is_valid_text(text: str) -> bool:
    """Whether a text can be saved and can name a file. A name that is not UTF-8, as Python decodes it, can."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text and len(text) <= _MAX_TEXT


def show(value: Any) -> str:
    """The value for a message: a long one is cut in the middle."""
    try:
        return printable(repr(value), _MAX_SHOWN)
    except ValueError:  # Python does not print integers of thousands of digits
        return "an integer of thousands of digits"


def _convert(value: Any, default: Any) -> Any:
    if isinstance(default, str):
        return value
    if isinstance(value, str):
        value = parse_literal(value)
    if isinstance(default, float) and type(value) in (int, str):
        try:
            return float(value)
        except OverflowError:
            return math.inf
        except ValueError:
            return value
    is_list = isinstance(default, (list, tuple)) and isinstance(value, (list, tuple))
    return type(default)(value) if is_list else value


def _check_single(value: Any, types: Iterable[type], bounds: Bounds) -> str:
    """What the value must be but is not; empty if it is valid."""
    is_of_type = type(value) in types or (type(value) is int and float in types)
    if not is_of_type or value != value:  # NaN is no number
        return " or ".join(_NAMES[each] for each in types)
    if isinstance(value, str):
        if not is_valid_text(value):
            return f"text without NUL and surrogates, of {_MAX_TEXT} characters at most"
        is_choice = not bounds.choices or value in bounds.choices
        return "" if is_choice else " or ".join(map(repr, bounds.choices))
    limit = _MAX_INT if isinstance(value, int) else math.inf
    least, most = max(bounds.least, -limit), min(bounds.most, limit)
    is_within = isinstance(value, bool) or least <= value <= most
    return "" if is_within else _describe_range(least, most, is_too_small=value < least)


def _describe_range(least: float, most: float, is_too_small: bool = True) -> str:
    if is_too_small and most in (_MAX_INT, _MAX_FLOAT, math.inf):
        return f"{least:.10g} or more"
    if not is_too_small and least in (-_MAX_INT, -_MAX_FLOAT):
        return f"{most:.10g} or less"
    return f"{least:.10g} to {most:.10g}"


def _check_list(value: Any, model: Any, bounds: Bounds) -> str:
    """As ``_check_single``, for a list. ``model`` is one with the types of the values, nested as deeply as is valid."""
    types = tuple({type(each): None for each in _walk(model)} or _NAMES)
    values = list(itertools.islice(_walk(value, _measure_depth(model) or _ANY_DEPTH), _MAX_VALUES + 1))
    if len(values) > _MAX_VALUES:
        return f"a list of at most {_MAX_VALUES} values"
    is_list = isinstance(value, (list, tuple)) and bounds.length in (0, len(values))
    is_valid = is_list and not any(_check_single(each, types, bounds) for each in values)
    return "" if is_valid and (bounds.is_empty_valid or not _has_empty_list(value)) else _describe_list(types, bounds)


def _describe_list(types: Iterable[type], bounds: Bounds) -> str:
    count = f"{bounds.length} " if bounds.length else "" if bounds.is_empty_valid else "one or more "
    has_range = (bounds.least, bounds.most) != (-_MAX_FLOAT, _MAX_FLOAT)
    each = f", each {_describe_range(bounds.least, bounds.most)}" if has_range else ""
    return f"a list of {count}{' or '.join(_PLURALS[each] for each in types)}{each}"


def _walk(value: Any, depth: int = _ANY_DEPTH) -> Iterator[Any]:
    """The values in lists nested to this depth; a list below it is a value."""
    if depth and isinstance(value, (list, tuple)):
        for each in value:
            yield from _walk(each, depth - 1)
    else:
        yield value


def _measure_depth(value: Any) -> int:
    return 1 + max(map(_measure_depth, value), default=0) if isinstance(value, (list, tuple)) else 0


def _has_empty_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and (not value or any(map(_has_empty_list, value)))
