"""SimCLR (Chen et al., ICML 2020) in PyTorch: ``backbone`` with the projector as its ``fc``, or encoder and projector.

Both (sthalles/SimCLR, Spijkervet/SimCLR) train on values 0 to 1. The authors' own weights, once converted from
TensorFlow, are in torchvision's format.
"""

from ssql_det.convert.checkpoint import UNIT
from ssql_det.convert.format import Format, Layout

SIMCLR = Format(
    name="simclr",
    title="SimCLR: backbone with the projector as its fc, or encoder and projector",
    branches={"online": (Layout("backbone.", marks=("backbone.fc.2.*",)), Layout("encoder.", marks=("projector.*",)))},
    left_out={
        "backbone.fc.*": "the projector",
        "encoder.fc.*": "the projector",
        "projector.*": "the projector",
    },
    method="simclr",
    images=UNIT,
)
