"""The ``SSQL_DET`` node of a detection config with its defaults, and the checks of a config's values."""

from __future__ import annotations

import itertools
import operator
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ssql_det.core.config import check_minimums, find_effective_config, flatten_config
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.d2 import NODE, CfgNode, map_former_keys
from ssql_det.detect.points import SCOPES
from ssql_det.detect.quantized_training import QUANTIZED_TRAINING_DEFAULTS, QuantizedTraining
from ssql_det.quant import Scheme, parse_bit_widths

CONFIG_FOLDER = "configs/detection/"
IGNORED_KEYS = (  # config keys that do not change a result
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"),
    *("SSQL_DET.METHOD", "SSQL_DET.PLUGINS"),
)

SSQL_DET_DEFAULTS: dict[str, Any] = {
    "PLUGINS": [],  # modules to import before the config is read
    "METHOD": "",  # pretraining method, as rows and tables name it; "" reads it from the checkpoint
    "EXTRA_NORM": "",  # norm after a C4 head's res5 (MoCo, CVPR 2020): a value of MODEL.RESNETS.NORM, or "" for none
    "MICRO_BATCHES": 1,  # gradient accumulation: each batch is split into this many equal micro-batches
    "MEMORY_FORMAT": "auto",  # of training: channels_last or contiguous; auto: channels_last on CPUs and GPUs
    "ON_BAD_IMAGE": "stop",  # or "skip": log and count an unreadable image, and train on the next one instead
    "FAST_EVALUATION": True,  # fold norms into convs; on the CPU, channels-last weights; only rounding differs
    "EVAL_PERIOD": 0,  # iterations between evaluations during training (and one at the end); 0: TEST.EVAL_PERIOD
    "EVAL_BITS": ["FP", "8w8a", "4w4a"],  # bit-widths of the evaluations during training
    "SCOPE": "all",  # part of the detector that these evaluations quantize: one of points.SCOPES
    "CALIB_IMAGES": Calibration().images,  # training images that these evaluations calibrate with
    "SCHEME": "minmax",  # quantizers of these evaluations, for example "weight=centred, act=mse"
    "QUANTIZED_TRAINING": dict(QUANTIZED_TRAINING_DEFAULTS),
}
DEFAULT_VALUES = flatten_config(CfgNode({NODE: SSQL_DET_DEFAULTS}))
RENAMED_KEYS = map_former_keys(SSQL_DET_DEFAULTS)  # keys of earlier versions, each with its current keys
TRAINING_EVALUATION_KEYS = tuple(
    f"{NODE}.{key}" for key in ("EVAL_PERIOD", "EVAL_BITS", "SCOPE", "CALIB_IMAGES", "SCHEME")
)
_MINIMUMS = {  # smallest valid values
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
_FRACTION_KEYS = (  # valid from 0 to 1
    *("MODEL.RPN.POSITIVE_FRACTION", "MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    *("MODEL.RPN.NMS_THRESH", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
)
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POSITIVE_KEYS = (  # numbers, or nested lists of numbers, above 0
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.PIXEL_STD"),
    *("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"),
)


def make_config_label(file: str, overrides: Sequence[str]) -> str:
    """The name of a config in result rows: its file and the ``KEY VALUE`` overrides, without ignored keys.

    A file in ``configs/detection`` is named relative to that folder, any other file without its folder.
    A file that only sets keys in ``IGNORED_KEYS``, such as ``MODEL.WEIGHTS``, gets the name of its base config, because
    its results are those of the base config.

    >>> from pathlib import Path
    >>> _ = Path("photos.yaml").write_text("SEED: 1")
    >>> make_config_label("photos.yaml", ["MODEL.WEIGHTS", "w.pth", "SOLVER.MAX_ITER", "90"])
    'photos.yaml SOLVER.MAX_ITER 90'
    """
    path = find_effective_config(file, IGNORED_KEYS)
    _, config_folder, relative_path = path.as_posix().rpartition(CONFIG_FOLDER)
    pairs = [pair for pair in zip(overrides[::2], overrides[1::2], strict=False) if pair[0] not in IGNORED_KEYS]
    return shlex.join([relative_path if config_folder else path.name, *itertools.chain.from_iterable(pairs)])


def get_training_seed(cfg: CfgNode) -> int:
    """The config's seed; ``SEED -1``, a random seed in Detectron2, becomes 0, so that every run can be repeated."""
    return max(int(cfg.SEED), 0)


def check_config(cfg: CfgNode) -> None:
    """Raise a UserError for values that would fail in the middle of a run or make its results meaningless.

    Detectron2's special values are valid: ``INPUT.MIN_SIZE_*`` 0 disables resizing, and
    ``TEST.DETECTIONS_PER_IMAGE`` -1 keeps all detections.

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
    scheme, bit_widths = Scheme.parse(cfg.SSQL_DET.SCHEME), parse_bit_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS)))
    scheme.check_bits(bit_widths)
    scheme.check_learns_nothing(bit_widths)
    QuantizedTraining.from_config(cfg)
    _check_model(cfg)


def _check_model(cfg: CfgNode) -> None:
    for key, fraction in _read_values(cfg, _FRACTION_KEYS):
        if not 0 <= fraction <= 1:
            raise UserError(f"{key} must be 0 to 1, got {fraction}")
    for key, loss in _read_values(cfg, ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE")):
        if loss not in _BOX_LOSSES:
            raise UserError(f"{key} must be one of {', '.join(_BOX_LOSSES)}; got {loss!r}")
    for key, value in _read_values(cfg, _POSITIVE_KEYS):
        if not _is_positive(value):
            raise UserError(f"{key} must have numbers above 0, got {value}")
        if key.endswith("BBOX_REG_WEIGHTS") and len(value) != 4:
            raise UserError(f"{key} must have four numbers, got {value}")


def _read_values(cfg: CfgNode, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield each key with its value in the config."""
    for key in keys:
        yield key, operator.attrgetter(key)(cfg)


def _is_positive(value: Any) -> bool:
    """Whether a value is a number above 0, or a list of such numbers, nested to any depth and not empty."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_positive, value))
    return isinstance(value, (int, float)) and value > 0
