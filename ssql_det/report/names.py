"""What rows say as the tables print it. Of a method's name letters and digits count, case and punctuation do not.

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
    "ssqlbyol": "BYOL+SSQL",
    "ssqlmocov2": "MoCov2+SSQL",
    "ssqlsimclr": "SSQL-NCE (ours)",
    "ssql200": "SSQL-200ep (ours)",
    "ssql200ep": "SSQL-200ep (ours)",
    "ssql200epochs": "SSQL-200ep (ours)",
    "ssqlsimsiam": "SSQL (ours)",
    "supervised": "IN supervised",
}
_CIFAR = "cifar_"  # a ResNet with a 3x3 stem
_NETWORKS = {"narrow_resnet": "narrow ResNet"} | {f"resnet{depth}": f"ResNet-{depth}" for depth in (18, 34, 50)}


def published_name(method: str, published: Iterable[str]) -> str | None:
    """The name among ``published`` that ``method`` means, or ``None`` when it is none of them."""
    names = {_bare(name): name for name in published}
    bare = _bare(method)
    return names.get(bare) or names.get(_bare(_ALIASES.get(bare, "")))


def network_name(network: str, on_cifar: bool) -> str:
    """The printed name of a network of `ssql_det.backbones`. Tables of CIFAR print one of a 3x3 stem by its depth.

    >>> [network_name(each, on_cifar=True) for each in ("cifar_resnet18", "resnet18", "narrow_resnet")]
    ['ResNet-18', 'ResNet-18, 7x7 stem', 'narrow ResNet']
    """
    name = _NETWORKS.get(network.removeprefix(_CIFAR), network)
    if not name.startswith("ResNet-") or network.startswith(_CIFAR) == on_cifar:
        return name
    return f"{name}, {'7x7' if on_cifar else '3x3'} stem"


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
