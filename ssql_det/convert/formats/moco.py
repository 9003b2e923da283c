"""MoCo (He et al., CVPR 2020; v2 and v3, Chen et al., 2020 and 2021): a query network and its moving average.

The published SSQL code keeps its plain BYOL, SimSiam and SimCLR in the same places; they have no queue.
"""

from __future__ import annotations

from typing import Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import Metadata, customary
from ssql_det.convert.format import Format, Found, Layout

_V3 = (Layout("base_encoder."), Layout("momentum_encoder."))


def _facts(content: Any, found: Found, architecture: Architecture) -> Metadata:
    return customary(architecture, "moco" if "queue" in found.state or found.layout in _V3 else None)


MOCO = Format(
    name="moco",
    title="MoCo v1 to v3, and the published SSQL code's plain methods: a network and its average",
    branches={
        "online": (Layout("encoder_q."), _V3[0]),
        "momentum": (Layout("encoder_k."), _V3[1]),
    },
    left_out={
        "*encoder*.fc.*": "a projector or classifier",
        "queue*": "MoCo's queue",
        "predictor.*": "the predictor",
    },
    metadata=_facts,
)
