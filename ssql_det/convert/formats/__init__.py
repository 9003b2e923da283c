"""The known checkpoint formats, one file each. Where several match a file, the first of this list is used."""

from __future__ import annotations

from dataclasses import replace

from ssql_det.convert.format import WRAPPER_PREFIXES, Format, Layout
from ssql_det.convert.formats.backbone import BACKBONE
from ssql_det.convert.formats.byol import BYOL
from ssql_det.convert.formats.caffe2 import CAFFE2
from ssql_det.convert.formats.detectron2 import DETECTRON2
from ssql_det.convert.formats.detectron2_detector import DETECTRON2_C4, DETECTRON2_FPN
from ssql_det.convert.formats.dino import DINO
from ssql_det.convert.formats.huggingface import HUGGINGFACE
from ssql_det.convert.formats.lightly import LIGHTLY
from ssql_det.convert.formats.moco import MOCO
from ssql_det.convert.formats.safetensors import SAFETENSORS
from ssql_det.convert.formats.simclr import SIMCLR
from ssql_det.convert.formats.simsiam import SIMSIAM
from ssql_det.convert.formats.solo_learn import SOLO_LEARN
from ssql_det.convert.formats.ssql_det import SSQL_DET
from ssql_det.convert.formats.ssql_published import SSQL_PUBLISHED
from ssql_det.convert.formats.swav import SWAV
from ssql_det.convert.formats.timm import TIMM
from ssql_det.convert.formats.torchvision import TORCHVISION
from ssql_det.convert.formats.vissl import VISSL

FORMATS: list[Format] = [  # a plugin inserts its own first: FORMATS.insert(0, MY_FORMAT)
    *(SSQL_DET, SSQL_PUBLISHED, SOLO_LEARN, LIGHTLY, SIMSIAM, SIMCLR, BYOL, SWAV, DINO, MOCO, VISSL),
    *(DETECTRON2_FPN, DETECTRON2_C4, DETECTRON2, CAFFE2, HUGGINGFACE),
    *(BACKBONE, SAFETENSORS, TORCHVISION, TIMM),
]


def make_prefixed_format(prefix: str, format: Format | None = None) -> Format:
    """A format for a ResNet under any prefix, with the names of ``format`` or of any known format.

    >>> make_prefixed_format("trainer.net", TORCHVISION).branches["online"][0].stem_key
    'trainer.net.conv1.weight'
    """
    for wrapper in WRAPPER_PREFIXES:
        prefix = prefix.removeprefix(wrapper)
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    formats = FORMATS if format is None else [format]
    layouts = [layout for each in formats for branch in each.branches.values() for layout in branch]
    names_by_stem = {layout.stem_key.removeprefix(layout.prefix): layout.names for layout in reversed(layouts)}
    return replace(
        format or TORCHVISION,
        branches={"online": tuple(Layout(prefix, names) for names in names_by_stem.values())},
        left_out={f"{prefix}fc.*": "a classifier"},
        outside_prefix=f"not under {prefix}",
    )
