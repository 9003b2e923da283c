"""What reading one file may cost: memory, time and depth in proportion to its length, whatever the file claims.

A pickle is a program: a few bytes of it can ask for gigabytes or for years. All parts of the reader share one
:class:`Budget` for a file, and what makes more than the bytes that it was read from charges its cost first. Time is
charged as memory: a microsecond as 32 bytes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

ELEMENT = 64  # the cost of an element of a list, a dict or a set that is copied

_FREE, _PER_BYTE = 16 << 20, 32
_NESTED_FILE = 24  # for each byte of a file in a file, whose opcodes are executed too
_VISIT = 32
_MAX_DEPTH = 200  # less than Python's limit of recursion, so that every function may walk the content
_MAX_KEY_SIZE = 1000  # values in a tuple or a frozenset that is a key
_MAX_UNPROTECTED = 1000
_INTEGERS_WITH_HASHES = 1 << 60  # smaller integers are their own hash


class RefusedError(Exception):
    """The file contains something that a checkpoint never needs and an attack might."""


class UnsupportedError(Exception):
    """The file contains tensors of a kind that is not read."""


class Budget:
    """What is left to read a file of ``length`` bytes.

    >>> budget = Budget(length=1000)
    >>> budget.charge(1 << 20)
    >>> budget.charge(1 << 40)
    Traceback (most recent call last):
    ssql_det.core.reading_budget.RefusedError: it takes more memory or time than a file of its size should
    """

    def __init__(self, length: int) -> None:
        self._left = _FREE + _PER_BYTE * length
        self._unprotected_left = _MAX_UNPROTECTED
        self._same_hashes: Counter[tuple[int, int]] = Counter()  # by container and hash

    def charge(self, cost: int) -> None:
        """Refuse the file if the costs so far exceed its budget; ``cost`` is in bytes."""
        self._left -= cost
        if self._left < 0:
            raise RefusedError("it takes more memory or time than a file of its size should")

    def charge_nested_file(self, length: int) -> None:
        self.charge(_NESTED_FILE * length)

    def charge_unprotected(self) -> None:
        """For a container that CPython destroys by recursion without a limit: a deque, a defaultdict, an array of
        objects. A chain of them would overflow the stack."""
        self._unprotected_left -= 1
        if self._unprotected_left < 0:
            raise RefusedError(f"it has more than {_MAX_UNPROTECTED} deques, defaultdicts and arrays of objects")

    def check_keys(self, keys: Iterable[Any], container: object) -> None:
        """To be called before keys are hashed and added to a container.

        Python computes the hash of a tuple by recursion without a limit, and again for every place where it is used.
        Keys of equal hash are compared with each other; only the hashes of strings and bytes cannot be chosen.
        """
        for key in keys:
            kind = type(key)
            if kind is str or kind is bytes or key is None:
                continue
            if kind is int and -_INTEGERS_WITH_HASHES < key < _INTEGERS_WITH_HASHES:
                continue
            size = _measure_key(key)
            place = (id(container), hash(key))
            self._same_hashes[place] += 1
            self.charge(2 * ELEMENT + _VISIT * size * self._same_hashes[place])

    def check_content(self, content: Any, path: tuple[int, ...] = ()) -> None:
        """Refuse content that is nested too deeply or, with everything written out that is shared, is too large.

        Containers that contain themselves are allowed; inert objects are not looked into. ``path`` has the ids of the
        containers around.
        """
        if not isinstance(content, _CONTAINERS) or id(content) in path:
            return
        if len(path) == _MAX_DEPTH:
            raise RefusedError(f"its content is nested more than {_MAX_DEPTH} deep")
        children = _list_children(content)
        self.charge(_VISIT * (1 + len(children)))
        for child in children:
            if isinstance(child, _CONTAINERS):
                self.check_content(child, (*path, id(content)))


_CONTAINERS = (dict, list, tuple, set, frozenset, deque, np.ndarray)


def _list_children(container: Any) -> Collection[Any]:
    if isinstance(container, OrderedDict):
        return [*container.values(), vars(container)]
    if isinstance(container, dict):
        return container.values()
    if isinstance(container, np.ndarray):
        return list(container.flat) if container.dtype.kind == "O" else ()
    return container


def _measure_key(key: Any) -> int:
    """How many values have to be visited to compute the hash of a key."""
    size, level = 1, [key]
    for _ in range(_MAX_DEPTH):
        nested = [each for each in level if isinstance(each, (tuple, frozenset))]
        if not nested:
            return size
        size += sum(map(len, nested))
        if size > _MAX_KEY_SIZE:
            break
        level = [value for each in nested for value in each]
    raise RefusedError(f"it has a key of more than {_MAX_KEY_SIZE} values or {_MAX_DEPTH} levels")
