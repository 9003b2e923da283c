"""Floor 1: networks by name, with their makers' names for their parts and a stated feature width."""

from ssql_det.backbones.build import (
    BACKBONES,
    NOT_A_TENSOR,
    Backbone,
    build_backbone,
    describe_expected_state,
    describe_state_dict,
    find_state_differences,
)

__all__ = [
    "BACKBONES",
    "NOT_A_TENSOR",
    "Backbone",
    "build_backbone",
    "describe_expected_state",
    "describe_state_dict",
    "find_state_differences",
]
