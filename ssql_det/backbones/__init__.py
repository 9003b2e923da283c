"""Floor 1: networks by name, with their makers' names for their parts and a stated feature width."""

from ssql_det.backbones.build import (
    BACKBONES,
    NO_TENSOR,
    Backbone,
    build_backbone,
    differences,
    expected_state,
    state_of,
)

__all__ = ["BACKBONES", "NO_TENSOR", "Backbone", "build_backbone", "differences", "expected_state", "state_of"]
