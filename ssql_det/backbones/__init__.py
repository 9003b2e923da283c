"""Networks by name. Their parts keep the names that their libraries give them; the dimension of features is stated."""

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
