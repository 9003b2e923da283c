"""Whole detectors of Detectron2, ``.pth`` or ``.pkl``: C4 (the last stage is in the head) and FPN (a ResNet below it).

A detector that is read keeps all its tensors. A backbone alone is written under the names it has in such a detector.

The format does not store ``num_batches_tracked``, which FrozenBatchNorm2d does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import IO, Any

from ssql_det.convert.checkpoint import Checkpoint
from ssql_det.convert.format import DetectorTensor, Format, Layout, Writer, as_tensor
from ssql_det.convert.formats.detectron2 import NAMES, read_metadata, rename_to_detectron2
from ssql_det.convert.metadata import METADATA_KEY
from ssql_det.core.errors import UserError
from ssql_det.core.tensor_files import save_tensors

FPN_LAYOUT = Layout("backbone.bottom_up.", NAMES)
C4_LAYOUT = Layout("backbone.", NAMES, required_keys=("roi_heads.res5.*",), last_stage_prefix="roi_heads.")

_DETECTOR_PREFIXES = ("backbone.fpn_", "proposal_generator.", "roi_heads.")  # all but the ResNet
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
_LEFT_OUT = {
    f"{_ANCHORS}*": "anchors, computed from the config",
    "pixel_mean": "the images' mean, which the config has",
    "pixel_std": "the images' std, which the config has",
}


def _find_detector_tensors(content: Any, others: dict[str, Any]) -> list[DetectorTensor]:
    named = ((name, as_tensor(value)) for name, value in others.items() if name.startswith(_DETECTOR_PREFIXES))
    return [
        DetectorTensor(name, name, tensor)
        for name, tensor in named
        if tensor is not None and not name.startswith(_ANCHORS)
    ]


def _write(layout: Layout, checkpoint: Checkpoint, file: IO[bytes]) -> Mapping[str, str]:
    is_fpn = any(name.startswith("backbone.fpn_") for name in checkpoint.detector)
    if checkpoint.detector and is_fpn != (layout is FPN_LAYOUT):
        current, target = ("an FPN", "a C4") if is_fpn else ("a C4", "an FPN")
        raise UserError(
            f"{checkpoint.display_name} is {current} detector and cannot become {target} one; convert its backbone: "
            "--to detectron2"
        )
    tensors, left_behind = rename_to_detectron2(checkpoint, layout)
    save_tensors({"model": {**tensors, **checkpoint.detector}, METADATA_KEY: checkpoint.metadata_dict()}, file)
    return left_behind


def _make_format(name: str, title: str, layout: Layout) -> Format:
    return Format(
        name=name,
        title=title,
        branches={"online": (layout,)},
        left_out=_LEFT_OUT,
        read_metadata=read_metadata,
        find_detector_tensors=_find_detector_tensors,
        writer=Writer((".pth",), partial(_write, layout)),
        not_stored="num_batches_tracked",
    )


DETECTRON2_FPN = _make_format("detectron2-fpn", "a whole FPN detector of Detectron2", FPN_LAYOUT)
DETECTRON2_C4 = _make_format("detectron2-c4", "a whole C4 detector of Detectron2", C4_LAYOUT)
