"""Which published method a row's free text means: letters and digits count, case and punctuation do not.

>>> published_name("simsiam 200EP", ["SimSiam", "SimSiam-200ep"]), published_name("ssql", ["SSQL (ours)"])
('SimSiam-200ep', 'SSQL (ours)')
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ALIASES = {  # bare spellings of what the tables print otherwise; SSQL there stands on SimSiam
    "fromscratch": "random init.",
    "imagenetsupervised": "IN supervised",
    "random": "random init.",
    "randominitialization": "random init.",
    "scratch": "random init.",
    "simsiam200": "SimSiam-200ep",
    "simsiam200epochs": "SimSiam-200ep",
    "simsiamssql": "SSQL (ours)",
    "ssql": "SSQL (ours)",
    "ssql200": "SSQL-200ep (ours)",
    "ssql200ep": "SSQL-200ep (ours)",
    "ssql200epochs": "SSQL-200ep (ours)",
    "ssqlsimsiam": "SSQL (ours)",
    "supervised": "IN supervised",
}


def published_name(method: str, published: Iterable[str]) -> str | None:
    """The name among ``published`` that ``method`` means, or ``None`` when it is none of them."""
    names = {_bare(name): name for name in published}
    bare = _bare(method)
    return names.get(bare) or names.get(_bare(_ALIASES.get(bare, "")))


def plain_name(published: str) -> str:
    """A published method's name as our rows have it: "(ours)" there is the paper's.

    >>> plain_name("SSQL (ours)")
    'SSQL'
    """
    return published.removesuffix(" (ours)")


def slug(name: str) -> str:
    """A name for files; of a name without letters or digits, nothing.

    >>> slug("SSQL-200ep"), slug("random init.")
    ('ssql-200ep', 'random-init')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _bare(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
