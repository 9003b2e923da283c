"""solo-learn (da Costa et al., JMLR 2022): BYOL and a dozen other methods, as Lightning checkpoints.

A linear classifier is always trained beside the network, and its presence gives the format away. Up to version 1.0.2
the network is called ``encoder``.

Does not carry: the method, which is in ``args.json`` beside the file.
"""

from ssql_det.convert.format import Format, Layout

_MARKS = ("classifier.*",)
_HEADS = ("classifier", "projector", "predictor", "prototypes", "head", "queue", "dino_loss_func")

SOLO_LEARN = Format(
    name="solo-learn",
    title="solo-learn's checkpoints (BYOL, ...)",
    branches={
        "online": (Layout("backbone.", marks=_MARKS), Layout("encoder.", marks=_MARKS)),
        "momentum": (Layout("momentum_backbone.", marks=_MARKS), Layout("momentum_encoder.", marks=_MARKS)),
    },
    left_out={
        **{f"{head}*": "a head" for head in _HEADS},
        **{f"momentum_{head}*": "a head of the momentum branch" for head in _HEADS},
    },
    note="the method (its args.json says so)",
)
