"""The ``SSQL_DET`` node of a detection config with its defaults, and the checks of a config's values."""

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
from ssql_det.quant import Scheme, parse_bit_widths

CONFIG_FOLDER = "configs/detection/"
IGNORED_KEYS = (  # they do not change a result
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"),
    *("SSQL_DET.METHOD", "SSQL_DET.PLUGINS"),
)

SSQL_DET_DEFAULTS: dict[str, Any] = {
    "PLUGINS": [],  # modules to import before the config is read
    "METHOD": "",  # how the backbone was pretrained, for rows and tables; "" takes it from the checkpoint
    "EXTRA_NORM": "",  # a norm after res5 of a C4 head, as in MoCo (He et al., CVPR 2020); values of MODEL.RESNETS.NORM
    "MICRO_BATCHES": 1,  # gradient accumulation: a batch is trained in this many parts
    "ON_BAD_IMAGE": "stop",  # or "skip": train on the next image instead, log the bad one and count it
    "FAST_EVALUATION": True,  # fold norms into quantized convs, channels last; only float rounding differs
    "EVAL_PERIOD": 0,  # iterations between evaluations during training (one more after the last); 0 for none
    "EVAL_BITS": ["FP", "8w8a", "4w4a"],  # the bit-widths of these evaluations
    "SCOPE": "all",  # what they quantize
    "CALIB_IMAGES": Calibration().images,  # images they calibrate with
    "SCHEME": "minmax",  # their quantizers, for example "weight=centred, act=mse"
}
DEFAULT_VALUES = {f"{NODE}.{key}": value for key, value in SSQL_DET_DEFAULTS.items()}
RENAMED_KEYS = map_former_keys(SSQL_DET_DEFAULTS)
TRAINING_EVALUATION_KEYS = tuple(
    f"{NODE}.{key}" for key in ("EVAL_PERIOD", "EVAL_BITS", "SCOPE", "CALIB_IMAGES", "SCHEME")
)
_MINIMUMS = {
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
_FRACTIONS = (
    *("MODEL.RPN.POSITIVE_FRACTION", "MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    *("MODEL.RPN.NMS_THRESH", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
)
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POSITIVE = (
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.PIXEL_STD"),
    *("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"),
)


def make_config_label(file: str, overrides: Sequence[str]) -> str:
    """The name of a config in result rows: its file, relative to ``configs/detection``, and the overrides.

    A file that sets only ignored keys, such as the weights, has the name of its base: rows of one recipe share it.

    >>> from pathlib import Path
    >>> _ = Path("photos.yaml").write_text("SEED: 1")
    >>> make_config_label("photos.yaml", ["MODEL.WEIGHTS", "w.pth", "SOLVER.MAX_ITER", "90"])
    'photos.yaml SOLVER.MAX_ITER 90'
    """
    path = find_effective_config(file, IGNORED_KEYS)
    _, is_in_folder, relative_path = path.as_posix().rpartition(CONFIG_FOLDER)
    pairs = [pair for pair in zip(overrides[::2], overrides[1::2], strict=False) if pair[0] not in IGNORED_KEYS]
    return shlex.join([relative_path if is_in_folder else path.name, *itertools.chain.from_iterable(pairs)])


def get_training_seed(cfg: CfgNode) -> int:
    """Detectron2's ``SEED -1`` means a random seed; here it means 0, so that every run can be repeated."""
    return max(int(cfg.SEED), 0)


def check_config(cfg: CfgNode) -> None:
    """Refuse values that would fail in the middle of a run, or train nonsense.

    What has a meaning in Detectron2 is allowed: a least size of 0 does not resize, -1 detections are all of them.

    >>> from ssql_det.d2 import read_config
    >>> check_config(read_config(None, ["INPUT.MAX_SIZE_TEST", "0"], SSQL_DET_DEFAULTS))
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: INPUT.MAX_SIZE_TEST must be 1 or more, got 0
    """
    check_minimums(cfg, _MINIMUMS)
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT must be RGB or BGR, got {cfg.INPUT.FORMAT!r}")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise UserError(f"INPUT.MIN_SIZE_TRAIN must be a list of sizes, each 0 or more; got {sizes}")
    if cfg.SSQL_DET.SCOPE not in SCOPES:
        raise UserError(f"SSQL_DET.SCOPE must be {' or '.join(SCOPES)}, got {cfg.SSQL_DET.SCOPE!r}")
    Scheme.parse(cfg.SSQL_DET.SCHEME).check_bits(parse_bit_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS))))
    _check_model(cfg)


def _check_model(cfg: CfgNode) -> None:
    for key, fraction in _read_values(cfg, _FRACTIONS):
        if not 0 <= fraction <= 1:
            raise UserError(f"{key} must be 0 to 1, got {fraction}")
    for key, loss in _read_values(cfg, ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE")):
        if loss not in _BOX_LOSSES:
            raise UserError(f"{key} must be one of {', '.join(_BOX_LOSSES)}; got {loss!r}")
    for key, numbers in _read_values(cfg, _POSITIVE):
        if not _are_positive(numbers):
            raise UserError(f"{key} must have numbers above 0, got {numbers}")
        if key.endswith("BBOX_REG_WEIGHTS") and len(numbers) != 4:
            raise UserError(f"{key} must have four numbers, got {numbers}")


def _read_values(cfg: CfgNode, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Each key with its value."""
    for key in keys:
        yield key, operator.attrgetter(key)(cfg)


def _are_positive(numbers: Any) -> bool:
    """A number, or a list of them that is not empty, however deeply nested."""
    if isinstance(numbers, (list, tuple)):
        return bool(numbers) and all(map(_are_positive, numbers))
    return isinstance(numbers, (int, float)) and numbers > 0
