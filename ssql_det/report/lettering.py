"""How much room a text takes in a drawing, guessed without a font: rather too much than too little.

>>> wrapped("a name of some length", 60.0, 10.0)
['a name of', 'some', 'length']
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_NARROW = frozenset(" .,:;!|'()[]ijlftrI")
_BROAD = frozenset("mwMW@%—…#&+<=>^~±")


def width(text: str, size: float) -> float:
    """Of its letters in a font of that size, which may be a broad one."""
    return size * sum(map(_share, text))


def widest(texts: Iterable[str], size: float) -> float:
    return max((width(text, size) for text in texts), default=0.0)


def wrapped(text: str, room: float, size: float) -> list[str]:
    """Lines that fit: broken between words, and within those that are too long for a line of their own."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if width(joined, size) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and width(lines[-1] + letter, size) > room:
                lines.append("")
            lines[-1] += letter
    return lines


def _share(letter: str) -> float:
    if letter in _BROAD or unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.45 if letter in _NARROW else 0.8 if letter.isupper() else 0.65
