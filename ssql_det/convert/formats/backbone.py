"""A ResNet with torchvision's names under ``backbone.``, as in mmpretrain, Barlow Twins, VICReg and others.

The format does not store the method.
"""

from ssql_det.convert.format import Format, Layout

_HEADS = ("head", "neck", "projector", "predictor", "bn", "classifier", "backbone.fc")
_BRANCHES = ("target_net.", "online_net.", "encoder_k.", "encoder_q.", "momentum_encoder.", "queue")  # of mmselfsup

BACKBONE = Format(
    name="backbone",
    title="a ResNet under backbone. (mmpretrain, Barlow Twins, VICReg, ...)",
    branches={"online": (Layout("backbone."),)},
    left_out={
        **{f"{head}.*": "a head" for head in _HEADS},
        **{f"{branch}*": "another branch, or a copy of the network" for branch in _BRANCHES},
    },
    not_stored="the method",
)
