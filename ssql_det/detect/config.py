"""The ``SSQL_DET`` node of a detection config, with every default, and what a config may not say."""

from __future__ import annotations

import itertools
import operator
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ssql_det.core.config import check_minimums, find_effective_config
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.d2 import NODE, CfgNode, map_former_keys
from ssql_det.detect.points import SCOPES
from ssql_det.quant import Scheme, parse_widths

FOLDER = "configs/detection/"
IGNORED_KEYS = (  # to a number
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"),
    *("SSQL_DET.METHOD", "SSQL_DET.PLUGINS"),
)

SSQL_DET_DEFAULTS: dict[str, Any] = {
    "PLUGINS": [],  # modules of the user's, imported before the rest is read
    "METHOD": "",  # how the backbone was pretrained, for rows and tables; "" for what the checkpoint says
    "EXTRA_NORM": "",  # of a C4 head, after res5: "" for none, else as MODEL.RESNETS.NORM (He et al., CVPR 2020, MoCo)
    "MICRO_BATCHES": 1,  # parts of a batch that are taken one after the other, where memory is short
    "ON_BAD_IMAGE": "stop",  # or "skip": the next image stands in, and the bad one is named and counted
    "FAST_EVALUATION": True,  # norms folded into quantized convs, channels last: equal but for rounding of floats
    "EVAL_PERIOD": 0,  # iterations between evaluations in training, and one after the last; 0 for none
    "EVAL_BITS": ["FP", "8w8a", "4w4a"],  # of those
    "SCOPE": "all",
    "CALIB_IMAGES": Calibration().images,
    "SCHEME": "minmax",  # quantizers of an evaluation in training, as "weight=centred, act=mse"
}
DEFAULT_VALUES = {f"{NODE}.{key}": value for key, value in SSQL_DET_DEFAULTS.items()}
RENAMED_KEYS = map_former_keys(SSQL_DET_DEFAULTS)
TRAINING_EVALUATION_KEYS = tuple(
    f"{NODE}.{key}" for key in ("EVAL_PERIOD", "EVAL_BITS", "SCOPE", "CALIB_IMAGES", "SCHEME")
)
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
_SHARES = (
    *("MODEL.RPN.POSITIVE_FRACTION", "MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    *("MODEL.RPN.NMS_THRESH", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
)
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POSITIVE = (
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.PIXEL_STD"),
    *("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"),
)


def make_config_label(file: str, overrides: Sequence[str]) -> str:
    """How a row names its config: the file, below ``configs/detection`` if it is there, and what the command changed.

    A file that only names a method and its weights is called as its base is: rows of one recipe have one name.

    >>> make_config_label("configs/detection/zoo/mask_r50_c4.yaml", ["MODEL.WEIGHTS", "w.pth", "SOLVER.MAX_ITER", "90"])
    'zoo/mask_r50_c4.yaml SOLVER.MAX_ITER 90'
    >>> make_config_label("configs/detection/table6/ssql.yaml", [])
    'voc_r18_c4.yaml'
    """
    path = find_effective_config(file, IGNORED_KEYS)
    _, is_ours, below = path.as_posix().rpartition(FOLDER)
    pairs = [pair for pair in zip(overrides[::2], overrides[1::2], strict=False) if pair[0] not in IGNORED_KEYS]
    return shlex.join([below if is_ours else path.name, *itertools.chain.from_iterable(pairs)])


def get_training_seed(cfg: CfgNode) -> int:
    """The seed of a training: every run has one, where Detectron2's -1 would leave it to chance."""
    return max(int(cfg.SEED), 0)


def check(cfg: CfgNode) -> None:
    """Refuse in one sentence what the engine would end on in a traceback in mid-run, or go on with as nonsense.

    Whatever Detectron2 gives a meaning stays allowed: a least size of 0 does not resize, -1 detections are all of them.

    >>> check(read_config("configs/detection/voc_r18_c4.yaml", ["INPUT.MAX_SIZE_TEST", "0"], SSQL_DET_DEFAULTS))
    UserError: INPUT.MAX_SIZE_TEST must be 1 or more, got 0
    """
    check_minimums(cfg, _LEAST)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT is RGB or BGR, got {cfg.INPUT.FORMAT!r}")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise UserError(f"INPUT.MIN_SIZE_TRAIN has to name sizes of 0 or more, got {sizes}")
    if cfg.SSQL_DET.SCOPE not in SCOPES:
        raise UserError(f"SSQL_DET.SCOPE is {' or '.join(SCOPES)}, got {cfg.SSQL_DET.SCOPE!r}")
    Scheme.parse(cfg.SSQL_DET.SCHEME).check_bits(parse_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS))))
    _check_model(cfg)


def _check_model(cfg: CfgNode) -> None:
    for key, share in _values(cfg, _SHARES):
        if not 0 <= share <= 1:
            raise UserError(f"{key} is a share, 0 to 1; got {share}")
    for key, loss in _values(cfg, ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE")):
        if loss not in _BOX_LOSSES:
            raise UserError(f"{key} is one of {', '.join(_BOX_LOSSES)}; got {loss!r}")
    for key, numbers in _values(cfg, _POSITIVE):
        if not _are_positive(numbers):
            raise UserError(f"{key} has to have numbers above 0, got {numbers}")
        if key.endswith("BBOX_REG_WEIGHTS") and len(numbers) != 4:
            raise UserError(f"{key} has to have four numbers, got {numbers}")


def _values(cfg: CfgNode, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """The keys, each with what the config says at it."""
    for key in keys:
        yield key, operator.attrgetter(key)(cfg)


def _are_positive(numbers: Any) -> bool:
    """In a list, or in lists in a list, none of them empty."""
    if isinstance(numbers, (list, tuple)):
        return bool(numbers) and all(map(_are_positive, numbers))
    return isinstance(numbers, (int, float)) and numbers > 0
