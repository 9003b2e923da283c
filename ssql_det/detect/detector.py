"""A detector from a file, every tensor in its place, and checkpoints of its training: Detectron2's layout, whole or
absent, with all that a resumed run needs.

``OUTPUT_DIR/model_0004999.pth`` has ``model``, ``optimizer``, ``scheduler`` and ``iteration``, as Detectron2 writes
them, and beside them the generators' state, the latest scalars and what is known about the network.
``last_checkpoint`` names the newest.
"""

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
    confirm_metadata,
    identify_architecture,
    load_backbone,
    load_detector,
    read_checkpoint,
)
from ssql_det.core.errors import UserError
from ssql_det.d2 import CfgNode, build_model
from ssql_det.detect.config import check
from ssql_det.detect.engine_errors import translate_errors

_logger = logging.getLogger(__name__)


def build_detector(cfg: CfgNode) -> nn.Module:
    """The network that a config describes, with fresh weights.

    >>> detector = build_detector(read_config("configs/detection/voc_r18_c4.yaml", node_defaults=SSQL_DET_DEFAULTS))
    """
    check(cfg)
    with translate_errors("this config does not describe a detector", RuntimeError):
        model: nn.Module = build_model(cfg)
        return model


def load_trained_detector(cfg: CfgNode) -> tuple[nn.Module, Checkpoint]:
    """The network with all the weights in ``MODEL.WEIGHTS``: a whole detector, one's own or of the model zoo."""
    checkpoint = _read(cfg)
    if not checkpoint.detector:
        raise UserError(f"{cfg.MODEL.WEIGHTS} is a backbone alone; train a detector with it first, and give that")
    model = build_detector(cfg)
    _report(load_detector(model, checkpoint), checkpoint, "the detector")
    return model, checkpoint


def load_pretrained_detector(cfg: CfgNode) -> tuple[nn.Module, Checkpoint, Coverage]:
    """The network with the backbone in ``MODEL.WEIGHTS``, all of it."""
    checkpoint = _read(cfg)
    if checkpoint.detector:
        _logger.warning("%s is a whole detector: its backbone is taken, its heads begin anew", checkpoint.display_name)
    model = build_detector(cfg)
    coverage = load_backbone(model, checkpoint)
    _report(coverage, checkpoint, "the backbone")
    return model, checkpoint, coverage


def describe_untrained(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What is known about a network that began from scratch: what its config says."""
    facts = confirm_metadata(
        Metadata(method=cfg.SSQL_DET.METHOD or None), get_input_format(cfg), cfg.MODEL.RESNETS.STRIDE_IN_1X1
    )
    return Checkpoint(identify_architecture(model), {}, facts).metadata_dict()


def get_input_format(cfg: CfgNode) -> InputFormat:
    """The images that a config feeds."""
    return InputFormat(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))


def _read(cfg: CfgNode) -> Checkpoint:
    """What a file does not say of its images and strides, the config it comes with does."""
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty; say which weights, at the end of the command: MODEL.WEIGHTS FILE")
    checkpoint = read_checkpoint(os.path.expanduser(cfg.MODEL.WEIGHTS))
    facts = checkpoint.metadata
    stride = cfg.MODEL.RESNETS.STRIDE_IN_1X1 if facts.stride_in_1x1 is None else facts.stride_in_1x1
    return replace(checkpoint, metadata=confirm_metadata(facts, facts.input or get_input_format(cfg), stride))


def _report(coverage: Coverage, checkpoint: Checkpoint, what: str) -> None:
    _logger.info(
        "%s: %.1f %% of %s, %d tensors; %d left as they were",
        *(checkpoint.display_name, coverage.percent, what, len(coverage.used), len(coverage.left_out)),
    )
