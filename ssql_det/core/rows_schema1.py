"""Rows of schema 1, whose calibration and config were prose, as rows of schema 2.

::

    calibration  "64 images of toy_voc_2007_trainval, seed 0, MinMax, BN recalibrated, backbone.res5.* at 8w8a"
    config       "narrow_resnet; knn, linear; fast: SGD at 30 for a batch of 512, 100 epochs; digits at 96 px, 800 and
                 200 images", of probes
"""

from __future__ import annotations

import re
from typing import Any

_CALIBRATION = re.compile(  # what follows a part ends it: one reading alone, or a hostile text would be tried for ever
    r"(?P<images>\d{1,9}) images(?: of (?P<data>(?:(?!, MinMax).)+?))?(?:, seed (?P<seed>-?\d{1,19}))?, MinMax"
    r"(?P<norms>, BN recalibrated)?(?P<overrides>(?:, (?:(?! at \w+(?:, |\Z)).)+ at \w+)*)"
)
_PROBE = re.compile(
    r"(?P<network>\w+); (?P<probes>knn|linear|knn, linear|linear, knn); "
    r"(?:(?P<linear>\w+): (?P<optimizer>\w+) at (?P<rate>[\d.e+-]+) for a batch of (?P<batch>\d{1,9}), "
    r"(?P<epochs>\d{1,9}) epochs(?:, (?P<cached_views>\d{1,9}) views of each image)?; )?"
    r"(?P<recipe>\w+) at (?P<size>\d{1,9}) px, (?P<train_images>\d{1,9}) and (?P<val_images>\d{1,9}) images"
)
_WHOLE = ("batch", "epochs", "cached_views", "size", "train_images", "val_images")


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """The record in schema 2's fields; a ``ValueError`` for prose that schema 1 did not write."""
    calibration, config = record.get("calibration"), record.get("config")
    if not isinstance(calibration, str) or not isinstance(config, str):
        raise ValueError("its calibration or config is no text")
    said = _CALIBRATION.fullmatch(calibration)
    if said is None:
        raise ValueError(f"its calibration says {calibration[:80]!r}")
    norms = "norms=re-estimated" if said["norms"] else "minmax"
    images = {"images": int(said["images"]), "seed": int(said["seed"] or 0), "data": said["data"] or ""}
    patterns = re.findall(r", (.+?) at (\w+)(?=, |$)", said["overrides"])
    typed = {"calibration": images, "scheme": norms, "overrides": dict(patterns), "schema": 2}
    probe = _PROBE.fullmatch(config)
    if probe is None and re.match(r"\w+; ", config):  # a detector's begins with a file's name
        raise ValueError(f"its config says {config[:80]!r}")
    if probe is not None:
        typed |= {"config": "", "network": probe["network"], "protocol": _protocol(probe)}
    return {**record, **typed}


def _protocol(probe: re.Match[str]) -> dict[str, Any]:
    found: dict[str, Any] = {name: value for name, value in probe.groupdict().items() if value is not None}
    found.pop("network")
    found["probes"] = found["probes"].split(", ")
    if "rate" in found:
        found["rate"] = float(found["rate"])
    return found | {name: int(found[name]) for name in _WHOLE if name in found}
