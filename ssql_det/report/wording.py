"""What rows hold as values, in words: for titles, notes and the names of lines."""

from __future__ import annotations

from ssql_det.core.rows import Protocol, Row


def scheme_of(row: Row) -> str:
    """How it was quantized, with the bits of single modules.

    >>> scheme_of(row)
    'act=mse, backbone.res5.* at 8w8a'
    """
    return ", ".join([row.scheme, *(f"{pattern} at {bits}" for pattern, bits in row.overrides.items())])


def described(protocol: Protocol) -> str:
    """
    >>> described({"probes": ["knn"], "recipe": "digits", "size": 96, "train_images": 800, "val_images": 200})
    'knn; digits at 96 px, 800 and 200 images'
    """
    if not protocol:
        return ""
    probes = protocol.get("probes", [])
    parts = [", ".join(probes) if isinstance(probes, list) else str(probes)]
    if "linear" in protocol:
        views = f", {protocol['cached_views']} views of each image" if "cached_views" in protocol else ""
        rate = protocol.get("rate", 0)
        rate = rate if isinstance(rate, (str, list)) else f"{rate:g}"  # a number, but in a file of somebody else
        parts.append(
            f"{protocol['linear']}: {protocol.get('optimizer')} at {rate} "
            f"for a batch of {protocol.get('batch')}, {protocol.get('epochs')} epochs{views}"
        )
    images = f"{protocol.get('train_images')} and {protocol.get('val_images')} images"
    parts.append(f"{protocol.get('recipe')} at {protocol.get('size')} px, {images}")
    return "; ".join(parts)
