"""VISSL (Goyal et al., 2021): the trunk of a ClassyVision model, or converted files of its zoo.

Does not carry: the method, which is in the run's config.
"""

from ssql_det.convert.format import Format, Layout

VISSL = Format(
    name="vissl",
    title="VISSL's trunks",
    branches={
        "online": (
            Layout("_feature_blocks.", containers=("classy_state_dict/base_model/model/trunk", "model_state_dict")),
        )
    },
    note="the method",
)
