"""timm's plain ResNets, whose names are torchvision's: a file does not say which of the two wrote it.

Variants with a deep stem or pooled shortcuts (resnet50d, ...) have tensors that no other format has names for.
"""

from ssql_det.convert.format import Format, Writer
from ssql_det.convert.formats.torchvision import TORCHVISION, write

TIMM = Format(
    name="timm",
    title="timm's plain ResNets, named as torchvision's",
    branches=TORCHVISION.branches,
    left_out=TORCHVISION.left_out,
    writer=Writer((".pth", ".bin"), write),
    not_stored=TORCHVISION.not_stored,
)
