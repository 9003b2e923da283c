"""The ``SSQL_DET`` node of a detection config: what the suite adds to Detectron2's keys, with every default."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssql_det.core.calibration import Calibration
from ssql_det.core.config import decisive
from ssql_det.d2 import NODE, former_names

if TYPE_CHECKING:
    from ssql_det.d2 import CfgNode

FOLDER = "configs/detection/"
NO_MATTER = (  # to a number
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
MOVED = former_names(SSQL_DET_DEFAULTS)
OF_TRAINING = tuple(f"{NODE}.{key}" for key in ("EVAL_PERIOD", "EVAL_BITS", "SCOPE", "CALIB_IMAGES", "SCHEME"))


def config_name(file: str, overrides: Sequence[str]) -> str:
    """How a row names its config: the file, below ``configs/detection`` if it is there, and what the command changed.

    A file that only names a method and its weights is called as its base is: rows of one recipe have one name.

    >>> config_name("configs/detection/zoo/mask_r50_c4.yaml", ["MODEL.WEIGHTS", "w.pth", "SOLVER.MAX_ITER", "90"])
    'zoo/mask_r50_c4.yaml SOLVER.MAX_ITER 90'
    >>> config_name("configs/detection/table6/ssql.yaml", [])
    'voc_r18_c4.yaml'
    """
    path = decisive(file, NO_MATTER)
    _, is_ours, below = path.as_posix().rpartition(FOLDER)
    pairs = [pair for pair in zip(overrides[::2], overrides[1::2], strict=False) if pair[0] not in NO_MATTER]
    return shlex.join([below if is_ours else path.name, *itertools.chain.from_iterable(pairs)])


def seed_of(cfg: CfgNode) -> int:
    """The seed of a training: every run has one, where Detectron2's -1 would leave it to chance."""
    return max(int(cfg.SEED), 0)
