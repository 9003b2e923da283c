"""One file a format. The order decides where two know the same file: the one that asks for more comes first."""

from __future__ import annotations

from dataclasses import replace

from ssql_det.convert.format import WRAPPERS, Format, Layout
from ssql_det.convert.formats.backbone import BACKBONE
from ssql_det.convert.formats.byol import BYOL
from ssql_det.convert.formats.caffe2 import CAFFE2
from ssql_det.convert.formats.detectron2 import DETECTRON2
from ssql_det.convert.formats.detectron2_detector import DETECTRON2_C4, DETECTRON2_FPN
from ssql_det.convert.formats.dino import DINO
from ssql_det.convert.formats.huggingface import HUGGINGFACE
from ssql_det.convert.formats.lightly import LIGHTLY
from ssql_det.convert.formats.moco import MOCO
from ssql_det.convert.formats.own import OWN
from ssql_det.convert.formats.published import PUBLISHED
from ssql_det.convert.formats.safetensors import SAFETENSORS
from ssql_det.convert.formats.simclr import SIMCLR
from ssql_det.convert.formats.simsiam import SIMSIAM
from ssql_det.convert.formats.solo_learn import SOLO_LEARN
from ssql_det.convert.formats.swav import SWAV
from ssql_det.convert.formats.timm import TIMM
from ssql_det.convert.formats.torchvision import TORCHVISION
from ssql_det.convert.formats.vissl import VISSL

FORMATS: list[Format] = [  # a user's module puts its own before them: FORMATS.insert(0, MINE)
    *(OWN, PUBLISHED, SOLO_LEARN, LIGHTLY, SIMSIAM, SIMCLR, BYOL, SWAV, DINO, MOCO, VISSL),
    *(DETECTRON2_FPN, DETECTRON2_C4, DETECTRON2, CAFFE2, HUGGINGFACE),
    *(BACKBONE, SAFETENSORS, TORCHVISION, TIMM),
]


def under_prefix(prefix: str, format: Format | None = None) -> Format:
    """A ResNet under a prefix that no format knows: in the names of one format, or of any."""
    for wrapper in WRAPPERS:
        prefix = prefix.removeprefix(wrapper)
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    known = FORMATS if format is None else [format]
    layouts = [layout for each in known for branch in each.branches.values() for layout in branch]
    tables = {layout.first.removeprefix(layout.prefix): layout.names for layout in reversed(layouts)}
    return replace(
        format or TORCHVISION,
        branches={"online": tuple(Layout(prefix, names) for names in tables.values())},
        left_out={f"{prefix}fc.*": "a classifier"},
        outside=f"not under {prefix}",
    )
