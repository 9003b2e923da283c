"""Reading JSON that somebody may have edited, or a kill or a full disk may have torn."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from ssql_det.core.errors import UserError
from ssql_det.core.files import read_text


def read_json(path: str | os.PathLike[str], advice: str, is_valid: Callable[[Any], bool] = lambda content: True) -> Any:
    """The content of a JSON file. An error about one that is damaged, or whose content is not valid, ends with the
    ``advice``, what the user can do."""
    try:
        content = parse_json(read_text(path))
    except ValueError as failure:
        raise UserError(f"{path} is damaged; {advice}") from failure
    if not is_valid(content):
        raise UserError(f"{path} is damaged; {advice}")
    return content


def parse_json(text: str, allow_nan: bool = False) -> Any:
    """``json.loads`` with a ``ValueError`` for every mistake, also for those that it lets pass: NaN, repeated keys.

    ``allow_nan`` is for callers who name the field with NaN or infinity themselves.

    >>> parse_json('{"seed": 0, "seed": 1}')
    Traceback (most recent call last):
    ValueError: the key 'seed' is there twice
    """
    try:
        if allow_nan:
            return json.loads(text, object_pairs_hook=_build_object)
        return json.loads(
            text, object_pairs_hook=_build_object, parse_float=_parse_float, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} is there twice")
    return built


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
