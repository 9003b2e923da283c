"""timm's ResNets. Names and conventions are torchvision's; a file says nothing of which of the two wrote it.

Variants with a deep stem or pooled shortcuts (resnet50d, ...) have tensors that no other format has a name for.
"""

from ssql_det.convert.format import Format, Writer
from ssql_det.convert.formats.torchvision import TORCHVISION, write

TIMM = Format(
    name="timm",
    title="timm's plain ResNets, named as torchvision's",
    branches=TORCHVISION.branches,
    left_out=TORCHVISION.left_out,
    writer=Writer((".pth", ".bin"), write),
    note=TORCHVISION.note,
)
