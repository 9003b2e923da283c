"""Inline markup in a page's texts, and the cleaning of texts from untrusted files.

Markup is code between backticks and ``[words](target)``. A target is a ``#heading`` of the page, an ``https://``
address or a file in the page's folder; a link with any other target is shown as plain text.

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
class MarkupStyle:
    """How an output format writes plain text, code, and a link (from its rendered words and its target)."""

    escape: Callable[[str], str]
    code: Callable[[str], str]
    link: Callable[[str, str], str]


def render_markup(text: str, style: MarkupStyle, anchors: Collection[str]) -> str:
    """Render a text on one line. A link to a heading whose anchor is not in ``anchors`` stays plain text."""

    def render(text: str, allow_links: bool) -> str:
        parts, end = [], 0
        for match in _MARKUP.finditer(text):
            if match["code"]:
                part = style.code(match["code"])
            elif allow_links and _is_allowed_target(match["target"], anchors):
                part = style.link(render(match["words"], False), match["target"])
            else:
                continue
            parts += [style.escape(text[end : match.start()]), part]
            end = match.end()
        return "".join([*parts, style.escape(text[end:])])

    return render(to_one_line(text), True)


def strip_markup(text: str) -> str:
    """The text without its markup, for places where only plain text is possible."""
    all_anchors = {match["target"].removeprefix("#") for match in _MARKUP.finditer(text) if match["target"]}
    return render_markup(text, MarkupStyle(str, str, lambda words, target: words), all_anchors)


def escape_markup(text: str) -> str:
    """Change an untrusted text so that none of it is read as markup.

    >>> escape_markup("[a](b.md) and `c`")
    "[a] (b.md) and 'c'"
    """
    return text.replace("`", "'").replace("](", "] (")


def to_one_line(text: str) -> str:
    return replace_unprintable(" ".join(text.split()))


def clean_lines(text: str) -> str:
    """The lines of a code block, with tabs expanded and trailing spaces removed."""
    return "\n".join(replace_unprintable(line).rstrip() for line in text.expandtabs().strip("\n").splitlines())


def replace_unprintable(text: str) -> str:
    """Replace control codes, lone surrogates and changes of the writing direction by question marks.

    >>> replace_unprintable("a" + chr(27) + "b")
    'a?b'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _is_allowed_target(target: str, anchors: Collection[str]) -> bool:
    if target.startswith("#"):
        return target[1:] in anchors
    return bool(_ADDRESS.fullmatch(target) or (_FILE.fullmatch(target) and ".." not in target.split("/")))
