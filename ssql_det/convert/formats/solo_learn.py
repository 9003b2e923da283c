"""solo-learn (da Costa et al., JMLR 2022): BYOL and a dozen other methods, as Lightning checkpoints.

All train a linear classifier along with the network, by which the format is recognized. Up to version 1.0.2 the network
is named ``encoder``.

The format does not store the method, which is in ``args.json`` beside the file.
"""

from ssql_det.convert.format import Format, Layout

_REQUIRED_KEYS = ("classifier.*",)
_HEADS = ("classifier", "projector", "predictor", "prototypes", "head", "queue", "dino_loss_func")

SOLO_LEARN = Format(
    name="solo-learn",
    title="solo-learn's checkpoints (BYOL, ...)",
    branches={
        "online": tuple(Layout(prefix, required_keys=_REQUIRED_KEYS) for prefix in ("backbone.", "encoder.")),
        "momentum": tuple(
            Layout(prefix, required_keys=_REQUIRED_KEYS) for prefix in ("momentum_backbone.", "momentum_encoder.")
        ),
    },
    left_out={
        **{f"{head}*": "a head" for head in _HEADS},
        **{f"momentum_{head}*": "a head of the momentum branch" for head in _HEADS},
    },
    not_stored="the method (its args.json says so)",
)
