"""BYOL (Grill et al., NeurIPS 2020) in PyTorch, after sthalles/PyTorch-BYOL and lucidrains/byol-pytorch.

The first has a state dict for each branch, with numbered parts; the second keeps the network inside each encoder, and
once more as ``net``. BYOL of solo-learn and lightly have formats of their own.
"""

from __future__ import annotations

from typing import Any

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import UNIT, Metadata, customary
from ssql_det.convert.format import Format, Found, Layout
from ssql_det.convert.formats.lightly import NUMBERED


def _facts(content: Any, found: Found, architecture: Architecture) -> Metadata:
    """The first trains on values 0 to 1, the second normalizes as for ImageNet."""
    return customary(architecture, "byol", UNIT if found.layout.names == NUMBERED else None)


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
        "projetion.*": "the projector",  # spelled so
        "*_encoder.projector.*": "the projector",
        "online_predictor.*": "the predictor",
        "*.fc.*": "a classifier",
        "net.*": "the online branch once more",
    },
    metadata=_facts,
)
