"""MoCo (He et al., CVPR 2020; v2 and v3, Chen et al., 2020 and 2021): a query encoder and its moving average.

The published SSQL code has its plain BYOL, SimSiam and SimCLR under the same names, but without a queue.
"""

from __future__ import annotations

from typing import Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.format import Format, FormatMatch, Layout
from ssql_det.convert.metadata import Metadata, assume_metadata

_V3_ONLINE, _V3_MOMENTUM = Layout("base_encoder."), Layout("momentum_encoder.")


def _read_metadata(content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
    is_moco = "queue" in match.state or match.layout in (_V3_ONLINE, _V3_MOMENTUM)
    return assume_metadata(architecture, "moco" if is_moco else None)


MOCO = Format(
    name="moco",
    title="MoCo v1 to v3, and the published SSQL code's plain methods: a network and its average",
    branches={
        "online": (Layout("encoder_q."), _V3_ONLINE),
        "momentum": (Layout("encoder_k."), _V3_MOMENTUM),
    },
    left_out={
        "*encoder*.fc.*": "a projector or classifier",
        "queue*": "MoCo's queue",
        "predictor.*": "the predictor",
    },
    read_metadata=_read_metadata,
)
