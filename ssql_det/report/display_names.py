"""Display names of methods, networks, quantization schemes and probe protocols in tables.

Method names are compared by letters and digits only, so case and punctuation do not matter. "(ours)" is printed in the
paper and means its authors.

>>> match_published_name("simsiam 200EP", ["SimSiam", "SimSiam-200ep"]), match_published_name("ssql", ["SSQL (ours)"])
('SimSiam-200ep', 'SSQL (ours)')
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from ssql_det.core.rows import RUNTIMES, Protocol, Row

_ALIASES = {  # normalized spellings of published names; "SSQL" alone is SSQL applied to SimSiam
    "fromscratch": "random init.",
    "imagenetsupervised": "IN supervised",
    "random": "random init.",
    "randominitialization": "random init.",
    "scratch": "random init.",
    "simsiampactourreconstruction": "SimSiam-PACT",
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
_STYLED = (  # methods with a colour and a marker of their own on every chart
    *("SimSiam", "SSQL (ours)", "BYOL", "random init.", "MoCov2", "SimCLR", "IN supervised", "BYOL+SSQL"),
    *("MoCov2+SSQL", "SSQL-NCE (ours)", "SimSiam-PACT", "SimSiam-200ep", "SSQL-200ep (ours)", "MoCov3", "MoCov3+SSQL"),
)
_CIFAR_PREFIX = "cifar_"  # of ResNets with a 3x3 stem
_NETWORKS = {"narrow_resnet": "narrow ResNet"} | {f"resnet{depth}": f"ResNet-{depth}" for depth in (18, 34, 50)}


def match_published_name(method: str, published: Iterable[str]) -> str | None:
    """The one of the ``published`` names that ``method`` means, or ``None`` if it means none of them."""
    names = {_normalize(name): name for name in published}
    normalized = _normalize(method)
    return names.get(normalized) or names.get(_normalize(_ALIASES.get(normalized, "")))


def format_network(network: str, is_3x3_stem_expected: bool) -> str:
    """The printed name of a network of `ssql_det.backbones`; a ResNet's stem is named only if unexpected.

    >>> networks = ("cifar_resnet18", "resnet18", "narrow_resnet")
    >>> [format_network(network, is_3x3_stem_expected=True) for network in networks]
    ['ResNet-18', 'ResNet-18, 7x7 stem', 'narrow ResNet']
    """
    name = _NETWORKS.get(network.removeprefix(_CIFAR_PREFIX), network)
    if not name.startswith("ResNet-") or network.startswith(_CIFAR_PREFIX) == is_3x3_stem_expected:
        return name
    return f"{name}, {'7x7' if is_3x3_stem_expected else '3x3'} stem"


def choose_styles(names: Sequence[str]) -> tuple[int, ...]:
    """A number for each curve of a chart, which decides its colour and its marker.

    It is that of its method on every chart, unless a curve before it has that. A name begins with its method.

    >>> choose_styles(["mine", "BYOL", "SSQL · minmax", "SSQL · act=mse"])
    (0, 2, 1, 3)
    """
    styles: dict[int, int] = {}
    for position, name in enumerate(names):
        method = match_published_name(name.partition(" · ")[0], _STYLED)
        if method is not None and _STYLED.index(method) not in styles.values():
            styles[position] = _STYLED.index(method)
    free = (number for number in itertools.count() if number not in styles.values())
    return tuple(styles[position] if position in styles else next(free) for position in range(len(names)))


def strip_ours(published: str) -> str:
    """A published method's name as it is in result rows: without "(ours)".

    >>> strip_ours("SSQL (ours)")
    'SSQL'
    """
    return published.removesuffix(" (ours)")


def slugify(name: str) -> str:
    """A name for files; empty if the name has no letters or digits.

    >>> slugify("SSQL-200ep"), slugify("random init.")
    ('ssql-200ep', 'random-init')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def format_scheme(row: Row) -> str:
    """A row's quantization scheme and per-module bit-widths, such as "act=mse, backbone.res5.* at 8w8a".

    An exported detector is told from the same detector in torch by "in onnxruntime".
    """
    parts = [row.scheme, *(f"{pattern} at {bits}" for pattern, bits in row.overrides.items())]
    return ", ".join([*parts, f"in {row.engine}"] if row.engine in RUNTIMES else parts)


def format_protocol(protocol: Protocol) -> str:
    """A probe's hyperparameters as one text, which begins with the probes' names; empty for a detector's row.

    >>> format_protocol({"probes": ["knn"], "recipe": "digits", "size": 96, "train_images": 800, "val_images": 200})
    'knn; digits augmentation at 96 px, 800 training and 200 validation images'
    """
    if not protocol:
        return ""
    probes = protocol.get("probes", [])
    parts = [", ".join(probes) if isinstance(probes, list) else str(probes)]
    if "linear" in protocol:
        views = f", {protocol['cached_views']} views of each image" if "cached_views" in protocol else ""
        rate = protocol.get("rate", 0)
        rate = rate if isinstance(rate, (str, list)) else f"{rate:g}"  # rows of other programs may hold another type
        parts.append(
            f"{protocol['linear']}: {protocol.get('optimizer')}, learning rate {rate} "
            f"for batch size {protocol.get('batch')}, {protocol.get('epochs')} epochs{views}"
        )
    images = f"{protocol.get('train_images')} training and {protocol.get('val_images')} validation images"
    parts.append(f"{protocol.get('recipe')} augmentation at {protocol.get('size')} px, {images}")
    return "; ".join(parts)


def _normalize(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
