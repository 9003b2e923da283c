"""What a detection config may not say: the engine would end in a traceback in mid-run, or go on with nonsense.

Whatever Detectron2 gives a meaning stays allowed: a least size of 0 does not resize, -1 detections are all of them.
"""

from __future__ import annotations

from typing import Any

from ssql_det.core.config import require_least
from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode
from ssql_det.detect.points import SCOPES
from ssql_det.quant import Scheme, parse_widths

_LEAST = {
    **dict.fromkeys(("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"), 1),
    **dict.fromkeys(("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"), 1),
    **dict.fromkeys(("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "MODEL.RPN.PRE_NMS_TOPK_TEST"), 1),
    **dict.fromkeys(("MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TEST"), 1),
    **dict.fromkeys(("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "SOLVER.IMS_PER_BATCH", "SSQL_DET.CALIB_IMAGES"), 1),
    **dict.fromkeys(("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"), 1),
    **dict.fromkeys(("INPUT.MIN_SIZE_TEST", "DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD", "SSQL_DET.EVAL_PERIOD"), 0),
    **dict.fromkeys(("SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "SOLVER.GAMMA"), 0),
    **dict.fromkeys(("SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"), 0),
}
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")


def check(cfg: CfgNode) -> None:
    """Refuse in one sentence, before anything is read or written.

    >>> check(read_config("configs/detection/voc_r18_c4.yaml", ["INPUT.MAX_SIZE_TEST", "0"], SSQL_DET_DEFAULTS))
    UserError: INPUT.MAX_SIZE_TEST must be 1 or more, got 0
    """
    require_least(cfg, _LEAST)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT is RGB or BGR, got {cfg.INPUT.FORMAT!r}")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise UserError(f"INPUT.MIN_SIZE_TRAIN has to name sizes of 0 or more, got {sizes}")
    if cfg.SSQL_DET.SCOPE not in SCOPES:
        raise UserError(f"SSQL_DET.SCOPE is {' or '.join(SCOPES)}, got {cfg.SSQL_DET.SCOPE!r}")
    Scheme.parse(cfg.SSQL_DET.SCHEME).require_widths(parse_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS))))
    _check_model(cfg.MODEL)


def _check_model(model: CfgNode) -> None:
    shares = {
        "MODEL.RPN.POSITIVE_FRACTION": model.RPN.POSITIVE_FRACTION,
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": model.ROI_HEADS.POSITIVE_FRACTION,
        "MODEL.RPN.NMS_THRESH": model.RPN.NMS_THRESH,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": model.ROI_HEADS.NMS_THRESH_TEST,
    }
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{key} is a share, 0 to 1; got {share}")
    losses = {
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": model.RPN.BBOX_REG_LOSS_TYPE,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": model.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE,
    }
    for key, loss in losses.items():
        if loss not in _BOX_LOSSES:
            raise UserError(f"{key} is one of {', '.join(_BOX_LOSSES)}; got {loss!r}")
    positive = {
        "MODEL.ANCHOR_GENERATOR.SIZES": model.ANCHOR_GENERATOR.SIZES,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": model.ANCHOR_GENERATOR.ASPECT_RATIOS,
        "MODEL.PIXEL_STD": model.PIXEL_STD,
        "MODEL.RPN.BBOX_REG_WEIGHTS": model.RPN.BBOX_REG_WEIGHTS,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": model.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
    }
    for key, numbers in positive.items():
        if not _are_positive(numbers):
            raise UserError(f"{key} has to have numbers above 0, got {numbers}")
        if key.endswith("BBOX_REG_WEIGHTS") and len(numbers) != 4:
            raise UserError(f"{key} has to have four numbers, got {numbers}")


def _are_positive(numbers: Any) -> bool:
    """In a list, or in lists in a list, none of them empty."""
    if isinstance(numbers, (list, tuple)):
        return bool(numbers) and all(map(_are_positive, numbers))
    return isinstance(numbers, (int, float)) and numbers > 0
