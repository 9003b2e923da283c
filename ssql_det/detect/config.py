"""The ``SSQL`` node of a detection config: what the suite adds to Detectron2's keys, with every default."""

from __future__ import annotations

from typing import Any

SSQL_DEFAULTS: dict[str, Any] = {
    "METHOD": "",  # how the backbone was pretrained, for rows and tables
    "EXTRA_NORM": "",  # of a C4 head, after res5: "" for none, else as MODEL.RESNETS.NORM (He et al., CVPR 2020, MoCo)
}
