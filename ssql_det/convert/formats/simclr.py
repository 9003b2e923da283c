"""SimCLR (Chen et al., ICML 2020) in PyTorch: sthalles/SimCLR and Spijkervet/SimCLR.

The first has the projector as ``backbone.fc``, the second has ``encoder`` and ``projector``; both train on values 0 to
1. The authors' own weights, converted from TensorFlow, are in torchvision's format.
"""

from ssql_det.convert.format import Format, Layout
from ssql_det.convert.metadata import UNIT

SIMCLR = Format(
    name="simclr",
    title="SimCLR: backbone with the projector as its fc, or encoder and projector",
    branches={
        "online": (
            Layout("backbone.", required_keys=("backbone.fc.2.*",)),
            Layout("encoder.", required_keys=("projector.*",)),
        )
    },
    left_out={
        "backbone.fc.*": "the projector",
        "encoder.fc.*": "the projector",
        "projector.*": "the projector",
    },
    method="simclr",
    input=UNIT,
)
