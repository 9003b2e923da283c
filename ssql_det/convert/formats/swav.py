"""SwAV and DeepCluster-v2 (Caron et al., NeurIPS 2020): a ResNet with a head and prototypes as its own parts."""

from ssql_det.convert.checkpoint import IMAGENET, InputFormat
from ssql_det.convert.format import Format, Layout

SWAV = Format(
    name="swav",
    title="SwAV and DeepCluster-v2: a ResNet with prototypes",
    branches={"online": (Layout(marks=("projection_head.*",)),)},
    left_out={"projection_head.*": "the projection head", "prototypes.*": "the prototypes"},
    method="swav",
    images=InputFormat("RGB", IMAGENET.mean, (58.14, 57.12, 57.375)),  # .228 where others have .229
)
