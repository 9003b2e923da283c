"""Any code that keeps a ResNet of torchvision's names under ``backbone.``: mmpretrain, Barlow Twins, VICReg, ...

Does not carry: the method.
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
        **{f"{branch}*": "another branch, or the same network again" for branch in _BRANCHES},
    },
    note="the method",
)
