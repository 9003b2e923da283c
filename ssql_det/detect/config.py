"""The ``SSQL`` node of a detection config: what the suite adds to Detectron2's keys, with every default."""

from __future__ import annotations

from typing import Any

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
