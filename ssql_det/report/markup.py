"""Texts of a page: the little markup that they may hold, and what foreign ones must lose.

Markup is ```code``` between backticks and ``[words](target)``, where a target is a ``#heading`` of the page, an
``https://`` address or a file beside the page. Everything else, other targets too, stands as it was written.

>>> strip_markup("`ssql-det sweep` fills [the table](#boxes)")
'ssql-det sweep fills the table'
>>> strip_markup("[here](javascript:alert(1))")
'[here](javascript:alert(1))'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

_MARKUP = re.compile(r"`(?P<code>[^`]+)`|\[(?P<words>[^\[\]]+)\]\((?P<target>[^\s()]+)\)")
_ADDRESS = re.compile(r"""https://[^\s()<>"'`\\|]+""")
_FILE = re.compile(r"(?!/)[\w./-]+")


@dataclass(frozen=True)
class Style:
    """How a renderer writes bare words, code, and a link of words that it has written already."""

    words: Callable[[str], str]
    code: Callable[[str], str]
    link: Callable[[str, str], str]


def render_markup(text: str, style: Style, anchors: Collection[str]) -> str:
    """A text on one line, in that style. A link to a heading that is not among ``anchors`` is none."""

    def written(text: str, are_links_open: bool) -> str:
        parts, end = [], 0
        for found in _MARKUP.finditer(text):
            if found["code"]:
                part = style.code(found["code"])
            elif are_links_open and _is_target(found["target"], anchors):
                part = style.link(written(found["words"], False), found["target"])
            else:
                continue
            parts += [style.words(text[end : found.start()]), part]
            end = found.end()
        return "".join([*parts, style.words(text[end:])])

    return written(to_one_line(text), True)


def strip_markup(text: str) -> str:
    """Without markup, for where none can stand."""
    every = {found["target"].removeprefix("#") for found in _MARKUP.finditer(text) if found["target"]}
    return render_markup(text, Style(str, str, lambda words, target: words), every)


def escape_markup(text: str) -> str:
    """A text of others as one that holds no markup."""
    return text.replace("`", "'").replace("](", "] (")


def to_one_line(text: str) -> str:
    return replace_unprintable(" ".join(text.split()))


def clean_lines(text: str) -> str:
    """The lines of a listing, without spaces at their ends."""
    return "\n".join(replace_unprintable(line).rstrip() for line in text.expandtabs().strip("\n").splitlines())


def replace_unprintable(text: str) -> str:
    """No control codes, half characters or turns of the writing direction."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _is_target(target: str, anchors: Collection[str]) -> bool:
    if target.startswith("#"):
        return target[1:] in anchors
    return bool(_ADDRESS.fullmatch(target) or (_FILE.fullmatch(target) and ".." not in target.split("/")))
