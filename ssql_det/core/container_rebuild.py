"""Checked replacements for the classes and functions that a pickle calls to make plain values and containers.

Each gets the file's :class:`~ssql_det.core.reading_budget.Budget` before the arguments from the file. A container is
made of another plain container only: a tensor, for example, can claim any number of elements to iterate over.
"""

from __future__ import annotations

import datetime
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch

from ssql_det.core.reading_budget import ELEMENT, Budget, RefusedError

Maker = Callable[..., Any]

MAX_DIMENSIONS = 64  # of an array or a tensor

_MAX_RANGE_LENGTH = 1_000_000
_MAX_TEXT = 64  # characters of an argument that is parsed
_LATIN1 = ("latin1", "latin-1")


def check_type(value: Any, *types: type) -> None:
    """Types of Python itself only: a subclass, such as NumPy's scalars or a bool, can behave otherwise."""
    if type(value) not in types:
        raise ValueError(f"it has a {type(value).__name__} instead of a {types[0].__name__}")


def check_integers(*values: Any) -> None:
    if not {*map(type, values)} <= {int}:
        raise ValueError("it has something else instead of an integer")


def check_shape(shape: Any) -> None:
    check_type(shape, tuple, list, torch.Size)
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"it has a shape of {len(shape)} dimensions")
    check_integers(*shape)


def _make_sequence(kind: type) -> Maker:
    def make(budget: Budget, elements: Any = ()) -> Any:
        check_type(elements, list, tuple)
        budget.charge(ELEMENT * len(elements))
        return kind(elements)

    return make


def _make_set(kind: type) -> Maker:
    def make(budget: Budget, elements: Any = ()) -> Any:
        check_type(elements, list, tuple, set, frozenset)
        budget.charge(ELEMENT * len(elements))
        budget.check_keys(elements, elements)
        return kind(elements)

    return make


def _make_dict(kind: type) -> Maker:
    """Of a dict, or of a list of pairs, as Python 2 pickles an ``OrderedDict``."""

    def make(budget: Budget, content: Any = ()) -> Any:
        budget.charge(ELEMENT * len(content))
        if isinstance(content, dict):
            budget.check_keys(content, content)
            return kind(content)
        check_type(content, list, tuple)
        for pair in content:
            check_type(pair, list, tuple)
        pairs = [(key, value) for key, value in content]
        budget.check_keys((key for key, _ in pairs), content)
        return kind(dict(pairs))

    return make


def _make_defaultdict(budget: Budget, factory: Any = None, content: Any = ()) -> Any:
    """Without a factory if it is not a plain class: whoever looks up a missing key would call it."""
    budget.charge_unprotected()
    is_plain = isinstance(factory, type) and factory in CONSTRUCTORS
    return defaultdict(factory if is_plain else None, _make_dict(dict)(budget, content))


def _make_deque(budget: Budget, elements: Any = (), max_length: int | None = None) -> Any:
    budget.charge_unprotected()
    return deque(_make_sequence(list)(budget, elements), max_length)


def _make_number(kind: type) -> Maker:
    def make(budget: Budget, *parts: Any) -> Any:
        for part in parts:
            check_type(part, int, float, bool)
        return kind(*parts)

    return make


def _make_time(kind: type) -> Maker:
    def make(budget: Budget, *parts: Any) -> Any:
        for part in parts:
            check_type(part, int, float, bytes, str, datetime.timedelta, datetime.timezone, type(None))
            if isinstance(part, bytes | str) and len(part) > _MAX_TEXT:
                raise ValueError(f"it has a {kind.__name__} of {len(part)} characters")
        return kind(*parts)

    return make


def _make_text(budget: Budget, text: str = "") -> str:
    check_type(text, str)
    return text


def _make_slice(budget: Budget, *ends: Any) -> slice:
    for end in ends:
        check_type(end, int, type(None))
    return slice(*ends)


def _make_size(budget: Budget, sizes: Any = ()) -> torch.Size:
    check_shape(sizes)
    return torch.Size(sizes)


def _make_device(budget: Budget, kind: str, *index: int) -> torch.device:
    check_type(kind, str)
    check_integers(*index)
    if len(kind) > _MAX_TEXT:
        raise ValueError(f"it has a device of {len(kind)} characters")
    return torch.device(kind, *index)


def _make_bytes(kind: type) -> Maker:
    """Of bytes, or of text as protocols 0 to 2 have it. ``bytes(LENGTH)`` would make any length of nothing."""

    def make(budget: Budget, content: Any = b"", encoding: str | None = None) -> Any:
        if encoding is not None:
            content = encode(budget, content, encoding)
        check_type(content, bytes, bytearray)
        budget.charge(len(content))
        return kind(content)

    return make


def encode(budget: Budget, text: str, encoding: str) -> bytes:
    """As protocols 0 to 2 pickle bytes; other encodings can take very long, or make much of little."""
    check_type(text, str)
    if encoding not in _LATIN1:
        raise RefusedError("it encodes text as something else than latin1, which a checkpoint never does")
    budget.charge(len(text))
    return text.encode("latin1")


def _make_range(budget: Budget, *ends: int) -> range:
    """Of limited length, for those who make a list or a set of it."""
    check_integers(*ends)
    made = range(*ends)
    if len(made) > _MAX_RANGE_LENGTH:
        raise ValueError("it has a range that is too long for a checkpoint")
    return made


CONSTRUCTORS: dict[type, Maker] = {
    **{kind: _make_sequence(kind) for kind in (list, tuple)},
    **{kind: _make_set(kind) for kind in (set, frozenset)},
    **{kind: _make_dict(kind) for kind in (dict, Counter, OrderedDict)},
    **{kind: _make_number(kind) for kind in (bool, int, float, complex)},
    **{kind: _make_time(kind) for kind in (datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone)},
    **{kind: _make_bytes(kind) for kind in (bytes, bytearray)},
    defaultdict: _make_defaultdict,
    deque: _make_deque,
    object: lambda budget: object(),
    range: _make_range,
    slice: _make_slice,
    str: _make_text,
    torch.Size: _make_size,
    torch.device: _make_device,
}
