"""Whole detectors of Detectron2, ``.pth`` or ``.pkl``: C4 (the last stage in the head) and FPN (a ResNet below).

A backbone written so has the names of its detector already; a detector that was read keeps all its other tensors.

Does not carry: ``num_batches_tracked``, which FrozenBN has no place for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import IO, Any

from ssql_det.convert.checkpoint import METADATA_KEY, Checkpoint
from ssql_det.convert.format import Format, Layout, Part, Writer, as_tensor
from ssql_det.convert.formats.detectron2 import NAMES, facts_of, write_names
from ssql_det.core.errors import UserError
from ssql_det.core.tensor_files import save_tensors

FPN_LAYOUT = Layout("backbone.bottom_up.", NAMES)
C4_LAYOUT = Layout("backbone.", NAMES, marks=("roi_heads.res5.*",), last_prefix="roi_heads.")

_PARTS = ("backbone.fpn_", "proposal_generator.", "roi_heads.")  # of a Faster or Mask R-CNN, beside its ResNet
_LEFT_OUT = {
    "proposal_generator.anchor_generator.cell_anchors.*": "anchors, computed from the config",
    "pixel_mean": "the images' mean, said by the config",
    "pixel_std": "the images' std, said by the config",
}


def _parts(content: Any, leftover: dict[str, Any]) -> list[Part]:
    anchors = next(iter(_LEFT_OUT)).rstrip("*")
    named = ((name, as_tensor(value)) for name, value in leftover.items() if name.startswith(_PARTS))
    return [Part(name, name, tensor) for name, tensor in named if tensor is not None and not name.startswith(anchors)]


def _write(layout: Layout, checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    is_fpn = any(name.startswith("backbone.fpn_") for name in checkpoint.detector)
    if checkpoint.detector and is_fpn != (layout is FPN_LAYOUT):
        here, other = ("an FPN", "a C4") if is_fpn else ("a C4", "an FPN")
        raise UserError(
            f"{checkpoint.display_name} is {here} detector and cannot become {other} one; convert its backbone: "
            "--to detectron2"
        )
    named, left_behind = write_names(checkpoint, layout)
    save_tensors({"model": {**named, **checkpoint.detector}, METADATA_KEY: checkpoint.metadata_dict()}, file)
    return left_behind


def _format(name: str, title: str, layout: Layout) -> Format:
    return Format(
        name=name,
        title=title,
        branches={"online": (layout,)},
        left_out=_LEFT_OUT,
        metadata=facts_of,
        rest=_parts,
        writer=Writer((".pth",), partial(_write, layout)),
        note="num_batches_tracked",
    )


DETECTRON2_FPN = _format("detectron2-fpn", "a whole FPN detector of Detectron2", FPN_LAYOUT)
DETECTRON2_C4 = _format("detectron2-c4", "a whole C4 detector of Detectron2", C4_LAYOUT)
