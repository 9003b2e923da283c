"""DINO (Caron et al., ICCV 2021) with a ResNet: student and teacher, each a backbone and a head.

The teacher, a moving average, is what DINO's authors evaluate, and is read by default. Their files of the backbone
alone are in torchvision's format.
"""

from ssql_det.convert.format import Format, Layout

DINO = Format(
    name="dino",
    title="DINO: teacher and student",
    branches={
        "momentum": (Layout("backbone.", containers=("teacher",)),),
        "online": (Layout("backbone.", containers=("student",)),),
    },
    left_out={"head.*": "the projection head", "backbone.fc.*": "a classifier"},
    method="dino",
)
