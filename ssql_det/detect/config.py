"""The ``SSQL`` node of a detection config: what the suite adds to Detectron2's keys, with every default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NO_MATTER = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SSQL.METHOD")  # to a number

SSQL_DEFAULTS: dict[str, Any] = {
    "METHOD": "",  # how the backbone was pretrained, for rows and tables; "" for what the checkpoint says
    "EXTRA_NORM": "",  # of a C4 head, after res5: "" for none, else as MODEL.RESNETS.NORM (He et al., CVPR 2020, MoCo)
    "MICRO_BATCHES": 1,  # parts of a batch that are taken one after the other, where memory is short
    "ON_BAD_IMAGE": "stop",  # or "skip": the next image stands in, and the bad one is named and counted
    "EVAL_PERIOD": 0,  # iterations between evaluations in training, and one after the last; 0 for none
    "EVAL_BITS": ["FP", "8w8a", "4w4a"],  # of those
    "SCOPE": "all",
    "CALIB_IMAGES": 32,
}


def config_name(file: str, overrides: Sequence[str]) -> str:
    """How a row names its config: the file, and what the command changed in it.

    >>> config_name("configs/detection/voc_r18_c4.yaml", ["MODEL.WEIGHTS", "w.pth", "SOLVER.MAX_ITER", "90"])
    'voc_r18_c4.yaml SOLVER.MAX_ITER 90'
    """
    pairs = zip(overrides[::2], overrides[1::2], strict=False)
    return " ".join([Path(file).name, *(f"{key} {value}" for key, value in pairs if key not in NO_MATTER)])
