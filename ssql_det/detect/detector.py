"""Build a detector from a config, and load all weights of a backbone or of a whole detector into it."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

from torch import nn

from ssql_det.convert import (
    Checkpoint,
    Coverage,
    InputFormat,
    Metadata,
    identify_architecture,
    load_backbone,
    load_detector,
    read_checkpoint,
    with_known_input,
)
from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, build_model
from ssql_det.detect.config import check_config
from ssql_det.detect.engine_errors import translate_config_errors

_logger = logging.getLogger(__name__)


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the detector of a config, with random weights.

    >>> from ssql_det.d2 import read_config
    >>> from ssql_det.detect import SSQL_DET_DEFAULTS
    >>> keys = ["MODEL.BACKBONE.NAME", "build_narrow_resnet_backbone", "MODEL.ROI_HEADS.NAME", "C4ROIHeads"]
    >>> detector = build_detector(read_config(None, [*keys, "MODEL.MASK_ON", "False"], SSQL_DET_DEFAULTS))
    >>> detector.roi_heads.box_predictor.cls_score.out_features
    81
    """
    check_config(cfg)
    with translate_config_errors("this config does not describe a detector", cfg):
        model: nn.Module = build_model(cfg)
        return model


def load_trained_detector(cfg: CfgNode) -> tuple[nn.Module, Checkpoint]:
    """Build a detector and load all its weights from ``MODEL.WEIGHTS``, a file of this package or of Detectron2."""
    model, checkpoint, _ = _load_all_weights(cfg)
    return model, checkpoint


def load_pretrained_detector(cfg: CfgNode) -> tuple[nn.Module, Checkpoint, Coverage]:
    """Build a detector and load its backbone from ``MODEL.WEIGHTS``; the neck and the heads keep random weights, unless
    ``SSQL_DET.LOAD_HEADS`` is set.

    The coverage lists which tensors were loaded.
    """
    if cfg.SSQL_DET.LOAD_HEADS:
        return _load_all_weights(cfg)
    checkpoint = _read_weights(cfg)
    if checkpoint.detector:
        _logger.warning(
            "%s has a whole detector: only its backbone is loaded; to keep its heads, use --init",
            checkpoint.display_name,
        )
    model = build_detector(cfg)
    coverage = load_backbone(model, checkpoint)
    _log_coverage(coverage, checkpoint, "the backbone")
    return model, checkpoint, coverage


def _load_all_weights(cfg: CfgNode) -> tuple[nn.Module, Checkpoint, Coverage]:
    checkpoint = _read_weights(cfg)
    if not checkpoint.detector:  # the tensors of the neck and the heads
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} has only a backbone; train a detector from it, then set MODEL.WEIGHTS to the "
            "detector's checkpoint"
        )
    model = build_detector(cfg)
    coverage = load_detector(model, checkpoint)
    _log_coverage(coverage, checkpoint, "the detector")
    return model, checkpoint, coverage


def build_random_init_metadata(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """The metadata for checkpoints of a detector that is trained from random weights, not from a pretrained backbone.

    Method, input format and stride position are the config's; the architecture is the model's.
    """
    metadata = Metadata(method=cfg.SSQL_DET.METHOD or None)
    metadata = with_known_input(metadata, get_input_format(cfg), cfg.MODEL.RESNETS.STRIDE_IN_1X1)
    return Checkpoint(identify_architecture(model), {}, metadata).metadata_dict()


def get_input_format(cfg: CfgNode) -> InputFormat:
    """Channel order, mean and std of the detector's input images."""
    return InputFormat(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))


def _read_weights(cfg: CfgNode) -> Checkpoint:
    """Read the checkpoint. An input format or a stride that its metadata lacks is taken from the config, and taken as
    certain: no later step warns that it was guessed."""
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty; name the weights at the end of the command, as MODEL.WEIGHTS FILE")
    checkpoint = read_checkpoint(os.path.expanduser(cfg.MODEL.WEIGHTS))
    metadata = checkpoint.metadata
    stride = cfg.MODEL.RESNETS.STRIDE_IN_1X1 if metadata.stride_in_1x1 is None else metadata.stride_in_1x1
    return replace(checkpoint, metadata=with_known_input(metadata, metadata.input or get_input_format(cfg), stride))


def _log_coverage(coverage: Coverage, checkpoint: Checkpoint, target: str) -> None:
    _logger.info(
        "%s: loaded %.1f %% of %s, %d tensors; %d tensors of other parts stay as initialized",
        *(checkpoint.display_name, coverage.percent, target, len(coverage.used), len(coverage.left_out)),
    )
