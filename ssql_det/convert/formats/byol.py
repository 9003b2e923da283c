"""BYOL (Grill et al., NeurIPS 2020) in PyTorch: sthalles/PyTorch-BYOL and lucidrains/byol-pytorch.

The first has a state dict for each branch, with numbered layers; the second has the network inside each encoder, and a
copy of it as ``net``. BYOL of solo-learn and of lightly have formats of their own.
"""

from __future__ import annotations

from typing import Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.format import Format, FormatMatch, Layout
from ssql_det.convert.formats.lightly import NUMBERED
from ssql_det.convert.metadata import UNIT, Metadata, assume_metadata


def _read_metadata(content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
    """PyTorch-BYOL trains on values 0 to 1, byol-pytorch normalizes as for ImageNet."""
    return assume_metadata(architecture, "byol", UNIT if match.layout.names == NUMBERED else None)


BYOL = Format(
    name="byol",
    title="BYOL: online and target networks",
    branches={
        "online": (
            Layout("encoder.", NUMBERED, ("online_network_state_dict",)),
            Layout("online_encoder.net."),
        ),
        "momentum": (
            Layout("encoder.", NUMBERED, ("target_network_state_dict",)),
            Layout("target_encoder.net."),
        ),
    },
    left_out={
        "projetion.*": "the projector",  # PyTorch-BYOL spells it so
        "*_encoder.projector.*": "the projector",
        "online_predictor.*": "the predictor",
        "*.fc.*": "a classifier",
        "net.*": "a copy of the online branch",
    },
    read_metadata=_read_metadata,
)
