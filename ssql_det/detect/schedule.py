"""``SSQL_DET.EPOCHS``: a training schedule that follows the number of training images."""

from __future__ import annotations

import logging
import math

from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, get_detection_dataset_dicts
from ssql_det.detect.datasets import check_dataset
from ssql_det.detect.engine_errors import translate_errors

LEAST_ITERATIONS = 300  # of a few images too: fewer do not train the heads
_logger = logging.getLogger(__name__)


def fit_schedule(cfg: CfgNode) -> CfgNode:
    """The config with the schedule that ``SSQL_DET.EPOCHS`` stand for, as explicit keys; with 0 epochs it is as it is.

    ``SOLVER.STEPS`` and ``SOLVER.WARMUP_ITERS`` keep their shares of ``SOLVER.MAX_ITER``. If no training image has a
    mask, ``MODEL.MASK_ON`` becomes ``False``. What was set is logged.
    """
    epochs = cfg.SSQL_DET.EPOCHS
    if not epochs:
        return cfg
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name your own data by --coco-train IMAGES:FILE.json, and --coco-val")
    for name in cfg.DATASETS.TRAIN:
        check_dataset(name)
    with translate_errors("the training data cannot be read"):
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    batch, former = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    iterations = max(math.ceil(epochs * len(records) / batch), LEAST_ITERATIONS)
    fitted = cfg.clone()
    fitted.defrost()
    fitted.SSQL_DET.EPOCHS = 0
    fitted.SOLVER.MAX_ITER = iterations
    fitted.SOLVER.STEPS = tuple(step * iterations // former for step in cfg.SOLVER.STEPS)
    fitted.SOLVER.WARMUP_ITERS = cfg.SOLVER.WARMUP_ITERS * iterations // former
    has_masks = any("segmentation" in each for record in records for each in record["annotations"])
    fitted.MODEL.MASK_ON = cfg.MODEL.MASK_ON and has_masks
    fitted.freeze()
    if fitted.MODEL.MASK_ON != cfg.MODEL.MASK_ON:
        _logger.info("the training data have no masks: MODEL.MASK_ON is set to False")
    message = "%d training images in batches of %d, %d times: SOLVER.MAX_ITER is set to %d, SOLVER.STEPS to %s"
    _logger.info(
        message, len(records), batch, math.ceil(iterations * batch / len(records)), iterations, fitted.SOLVER.STEPS
    )
    return fitted
