"""Refusing config values that minid2 does not support, before anything is built."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from .config import CfgNode, get_cfg

UNSUPPORTED = (
    *("MODEL.KEYPOINT_ON", "MODEL.ROI_KEYPOINT_HEAD.*", "TEST.KEYPOINT_OKS_SIGMAS"),
    *("MODEL.SEM_SEG_HEAD.*", "MODEL.PANOPTIC_FPN.*", "MODEL.RETINANET.*", "MODEL.ROI_BOX_CASCADE_HEAD.*"),
    *("MODEL.LOAD_PROPOSALS", "DATASETS.PROPOSAL_FILES_*", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_*"),
    *("MODEL.RESNETS.DEFORM_*", "MODEL.ANCHOR_GENERATOR.ANGLES"),
    *("MODEL.ROI_BOX_HEAD.*FED_LOSS*", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "TEST.AUG.*", "VIS_PERIOD"),
)


def refuse_unsupported(cfg: CfgNode) -> None:
    """Raise an error that names every unsupported key whose value is not the default."""
    defaults = dict(_leaves(get_cfg()))
    changed = [
        name
        for name, value in _leaves(cfg)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in UNSUPPORTED)
        and _plain(value) != _plain(defaults.get(name))
    ]
    if changed:
        raise NotImplementedError(
            f"minid2 does not support {', '.join(changed)}: leave the default, or install detectron2 itself"
        )


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as in a dumped config."""
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value
