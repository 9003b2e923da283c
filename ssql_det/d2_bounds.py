"""The bounds of a detection config's values: of the engine's keys, and of those of the node ``SSQL_DET``.

They refuse what would fail in the middle of a run, or make its results meaningless. Detectron2's special values are
valid, such as ``INPUT.MIN_SIZE_TEST`` 0, which disables resizing, ``TEST.DETECTIONS_PER_IMAGE`` -1, which keeps all
detections, and ``SOLVER.CLIP_GRADIENTS.NORM_TYPE`` inf, the maximum norm. A key without bounds, such as one of a newer
Detectron2, takes every value of its default's type.
"""

from __future__ import annotations

import math

from ssql_det.core.config_values import Bounds, BoundsByKey

_COUNT = Bounds(least=1)
_FROM_0 = Bounds(least=0)
_FRACTION = Bounds(least=0, most=1)
_LAYERS = Bounds(least=0, most=100)
_CHANNELS = Bounds(least=1, most=1 << 14)
_PIXELS = Bounds(least=1, most=1 << 16)
_PIXELS_FROM_0 = Bounds(least=0, most=1 << 16)
_LOSS_WEIGHT = Bounds(least=0, most=1e6)
_BOX_LOSS = Bounds(choices=("smooth_l1", "giou", "diou", "ciou"))
_NAMES = Bounds(like=["name"])

BOUNDS: BoundsByKey = {
    # The network
    "MODEL.PIXEL_MEAN": Bounds(least=-1e6, most=1e6, length=3),
    "MODEL.PIXEL_STD": Bounds(least=1e-6, most=1e6, length=3),
    "MODEL.FPN.IN_FEATURES": _NAMES,  # empty: the backbone is no FPN
    "MODEL.*.IN_FEATURES": Bounds(is_empty_valid=False),
    "MODEL.RESNETS.OUT_FEATURES": Bounds(is_empty_valid=False),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": Bounds(length=4),
    "MODEL.RESNETS.*_GROUP*": _CHANNELS,
    "MODEL.RPN.CONV_DIMS": Bounds(least=-1, most=1 << 14, is_empty_valid=False),  # -1: as many as the input has
    "MODEL.*_CHANNELS": _CHANNELS,
    "MODEL.*_DIM": _CHANNELS,
    "MODEL.*_DIMS": _CHANNELS,
    "MODEL.*.NUM_CONV*": _LAYERS,
    "MODEL.*.NUM_FC": _LAYERS,
    "MODEL.*.NUM_CLASSES": Bounds(least=1, most=1 << 20),
    "MODEL.*.POOLER_RESOLUTION": Bounds(least=1, most=1 << 8),
    "MODEL.*.POOLER_SAMPLING_RATIO": Bounds(least=0, most=1 << 6),  # 0: by the size of the box
    # Anchors, boxes and losses
    "MODEL.ANCHOR_GENERATOR.SIZES": Bounds(least=1e-3, most=1e6, is_empty_valid=False, like=[[32.0]]),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": Bounds(least=1e-3, most=1e3, is_empty_valid=False),
    "MODEL.ANCHOR_GENERATOR.ANGLES": Bounds(least=-360, most=360, is_empty_valid=False, like=[[-90.0]]),
    "MODEL.ANCHOR_GENERATOR.OFFSET": _FRACTION,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _FROM_0,
    "MODEL.*.IOU_THRESHOLDS": Bounds(least=0, most=1, is_empty_valid=False),
    "MODEL.*.IOU_LABELS": Bounds(least=-1, most=1, is_empty_valid=False),
    "MODEL.*.POSITIVE_FRACTION": _FRACTION,
    "MODEL.*.NMS_THRESH*": _FRACTION,
    "MODEL.*.SCORE_THRESH_TEST": Bounds(least=-1, most=1),
    "MODEL.*.BATCH_SIZE_PER_IMAGE": Bounds(least=1, most=1 << 20),
    "MODEL.*_TOPK_*": _COUNT,
    "MODEL.*.TOPK_*": _COUNT,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": Bounds(least=1e-3, most=1e6, is_empty_valid=False),
    "MODEL.*.BBOX_REG_WEIGHTS": Bounds(least=1e-3, most=1e6, length=4),
    "MODEL.*.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.*LOSS_WEIGHT": _LOSS_WEIGHT,
    "MODEL.*.SMOOTH_L1*_BETA": _FROM_0,
    # Data
    "INPUT.FORMAT": Bounds(choices=("RGB", "BGR")),
    "INPUT.MASK_FORMAT": Bounds(choices=("polygon", "bitmask")),
    "INPUT.RANDOM_FLIP": Bounds(choices=("none", "horizontal", "vertical")),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": Bounds(choices=("choice", "range")),
    "INPUT.MIN_SIZE_TRAIN": Bounds(least=0, most=1 << 16, is_empty_valid=False),  # 0: do not resize
    "INPUT.MIN_SIZE_TEST": _PIXELS_FROM_0,
    "INPUT.MAX_SIZE_T*": _PIXELS,
    "INPUT.CROP.SIZE": Bounds(least=0, most=1 << 16, length=2),
    "DATASETS.*_TOPK_*": _COUNT,
    "DATASETS.*": _NAMES,
    "DATALOADER.NUM_WORKERS": Bounds(least=0, most=1 << 10),
    "DATALOADER.REPEAT_THRESHOLD": _FRACTION,
    # Training
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.IMS_PER_BATCH": Bounds(least=1, most=1 << 20),
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.BIAS_LR_FACTOR": Bounds(least=0, is_none_valid=True),
    "SOLVER.WEIGHT_DECAY_NORM": Bounds(least=0, is_none_valid=True),  # None: that of the other weights
    "SOLVER.WEIGHT_DECAY_BIAS": Bounds(least=0, like=0.0),
    "SOLVER.NUM_DECAYS": Bounds(least=0, most=1000),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Bounds(least=0, most=math.inf),
    "SOLVER.*": _FROM_0,
    # Evaluation, and what is left
    "TEST.EXPECTED_RESULTS": Bounds(like=[["bbox", "AP", 38.5, 0.2]]),
    "TEST.KEYPOINT_OKS_SIGMAS": Bounds(least=0, like=[0.1]),
    "TEST.DETECTIONS_PER_IMAGE": Bounds(least=-1),  # -1: all
    "TEST.EVAL_PERIOD": _FROM_0,
    "TEST.AUG.M*": _PIXELS,
    "TEST.PRECISE_BN.NUM_ITER": _COUNT,
    "SEED": Bounds(most=(1 << 32) - 1),  # below 0: Detectron2 draws one
    "SSQL_DET.PLUGINS": _NAMES,
    "SSQL_DET.EPOCHS": Bounds(least=0, most=1 << 20),
    "SSQL_DET.MICRO_BATCHES": _COUNT,
    "SSQL_DET.EVAL_PERIOD": _FROM_0,
    "SSQL_DET.EVAL_BITS": Bounds(like=["8w8a", 8]),
    "SSQL_DET.CALIB_IMAGES": _COUNT,
    "SSQL_DET.QUANTIZED_TRAINING.START": _FROM_0,
    "SSQL_DET.QUANTIZED_TRAINING.DISTILLATION": _FROM_0,
    "SSQL_DET.QUANTIZED_TRAINING.QUANTIZER_*": _FROM_0,
    "SSQL_DET.QUANTIZED_TRAINING.DISTILLATION_TERMS": Bounds(is_empty_valid=False),
}
