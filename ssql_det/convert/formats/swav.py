"""SwAV and DeepCluster-v2 (Caron et al., NeurIPS 2020): a ResNet that has the projection head and prototypes itself."""

from ssql_det.convert.format import Format, Layout
from ssql_det.convert.metadata import IMAGENET, InputFormat

SWAV = Format(
    name="swav",
    title="SwAV and DeepCluster-v2: a ResNet with prototypes",
    branches={"online": (Layout(required_keys=("projection_head.*",)),)},
    left_out={"projection_head.*": "the projection head", "prototypes.*": "the prototypes"},
    method="swav",
    input=InputFormat("RGB", IMAGENET.mean, (58.14, 57.12, 57.375)),  # .228 where others have .229
)
