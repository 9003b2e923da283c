"""The ``SSQL_DET`` node of a detection config with its defaults, and the checks of a config's values."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from typing import Any

from ssql_det.core.config import check_values, find_effective_config, flatten_config
from ssql_det.core.errors import UserError
from ssql_det.core.rows import Calibration
from ssql_det.d2 import NODE, CfgNode, get_default_config, map_former_keys
from ssql_det.d2_bounds import BOUNDS
from ssql_det.detect.points import SCOPES
from ssql_det.detect.quantized_training import QUANTIZED_TRAINING_DEFAULTS, QUANTIZED_TRAINING_KEYS, QuantizedTraining
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
    "LOAD_HEADS": False,  # begin with the neck and the heads in MODEL.WEIGHTS too, as `train-det --init` does
    "EPOCHS": 0,  # above 0: SOLVER.MAX_ITER, STEPS and WARMUP_ITERS follow the number of training images
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
TRAINING_KEYS = (f"{NODE}.LOAD_HEADS", *QUANTIZED_TRAINING_KEYS)  # which evaluations do not use


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

    ``read_config`` has checked each value of a config that it read; here those that were set afterwards are checked as
    well, and what needs more than the value itself.

    >>> from ssql_det.d2 import read_config
    >>> check_config(read_config(None, ["SSQL_DET.SCOPE", "head"], SSQL_DET_DEFAULTS))
    Traceback (most recent call last):
    ssql_det.core.errors.UserError: SSQL_DET.SCOPE must be backbone or backbone+neck or all, got 'head'
    """
    check_values(cfg, get_default_config(SSQL_DET_DEFAULTS), BOUNDS)
    if cfg.SSQL_DET.SCOPE not in SCOPES:
        raise UserError(f"SSQL_DET.SCOPE must be {' or '.join(SCOPES)}, got {cfg.SSQL_DET.SCOPE!r}")
    scheme, bit_widths = Scheme.parse(cfg.SSQL_DET.SCHEME), parse_bit_widths(",".join(map(str, cfg.SSQL_DET.EVAL_BITS)))
    scheme.check_bits(bit_widths)
    scheme.check_learns_nothing(bit_widths)
    QuantizedTraining.from_config(cfg)
