"""VISSL (Goyal et al., 2021): the trunk of a ClassyVision model, or a converted file of VISSL's model zoo.

The format does not store the method, which is in the config of the run.
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
    not_stored="the method",
)
