"""Caffe2's blobs, ``.pkl``: MSRA's ResNets in Detectron2's model zoo, and the detectors of the first Detectron.

Names are joined with underscores; a block's convs are ``branch2a`` to ``branch2c``, its shortcut is ``branch1``. In the
first Detectron norms are an affine layer (``_bn_s``, ``_bn_b``), which is FrozenBatchNorm2d with mean 0 and variance 1,
and the background is the first class, in Detectron2 the last.

The format does not store the running statistics of an affine norm, nor input format and stride, which are assumed to
be MSRA's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.format import DetectorTensor, Format, FormatMatch, Layout, Names, as_tensor
from ssql_det.convert.metadata import InputFormat, Metadata, assume_model_zoo_metadata


def _make_names(**norm_suffixes: str) -> Names:
    return Names(
        stem="conv1",
        stem_norm="res_conv1_bn",
        conv="res{stage}_{block}_branch2{conv}",
        norm="res{stage}_{block}_branch2{conv}_bn",
        shortcut="res{stage}_{block}_branch1",
        shortcut_norm="res{stage}_{block}_branch1_bn",
        first_stage=2,
        conv_labels="abc",
        conv_suffixes={"weight": "_w"},
        norm_suffixes=norm_suffixes,
    )


_BATCH_NORM = _make_names(weight="_gamma", bias="_beta", running_mean="_running_mean", running_var="_running_var")
_ABBREVIATED_BATCH_NORM = _make_names(weight="_s", bias="_b", running_mean="_rm", running_var="_riv")
_AFFINE_NORM = _make_names(weight="_s", bias="_b")
_IDENTITY_STATISTICS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {  # variance plus eps (1e-5) is 1
    "running_mean": torch.zeros,
    "running_var": lambda shape: torch.ones(shape) - 1e-5,
}
_CONTAINERS = ("blobs", "")
_DETECTRON1 = Layout("", _AFFINE_NORM, _CONTAINERS, ("res_conv1_bn_s",), constants=_IDENTITY_STATISTICS)
_DETECTRON1_INPUT = InputFormat("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))

_DETECTOR_NAMES = (  # a pattern of blobs, without their "_w" or "_b", and Detectron2's name
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", r"backbone.fpn_lateral\1"),
    (r"fpn_res(\d)_\d+_sum", r"backbone.fpn_output\1"),
    (r"conv_rpn(?:_fpn2)?", "proposal_generator.rpn_head.conv"),
    (r"rpn_cls_logits(?:_fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred(?:_fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"fc6", "roi_heads.box_head.fc1"),
    (r"fc7", "roi_heads.box_head.fc2"),
    (r"cls_score", "roi_heads.box_predictor.cls_score"),
    (r"bbox_pred", "roi_heads.box_predictor.bbox_pred"),
    (r"_\[mask\]_fcn(\d)", r"roi_heads.mask_head.mask_fcn\1"),
    (r"conv5_mask", "roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", "roi_heads.mask_head.predictor"),
)
_SUFFIXES = {"w": "weight", "b": "bias"}


def get_detector_name(blob: str) -> str | None:
    """Detectron2's name for a blob of a detector that is not of its backbone.

    >>> get_detector_name("fpn_inner_res4_5_sum_lateral_w")
    'backbone.fpn_lateral4.weight'
    """
    for pattern, name in _DETECTOR_NAMES:
        if match := re.fullmatch(rf"{pattern}_([wb])", blob):
            return f"{match.expand(name)}.{_SUFFIXES[match[match.lastindex or 0]]}"
    return None


def _reorder_classes(name: str, tensor: Tensor) -> Tensor:
    """From background first to Detectron2's order: no background for boxes and masks, and last for the scores."""
    if ".bbox_pred." in name:
        return tensor[4:]
    if ".mask_head.predictor." in name:
        return tensor[1:]
    return tensor.roll(-1, dims=0) if ".cls_score." in name else tensor


def _read_metadata(content: Any, match: FormatMatch, architecture: Architecture) -> Metadata:
    if match.layout is _DETECTRON1:
        return Metadata(_DETECTRON1_INPUT, stride_in_1x1=architecture.groups == 1)
    return assume_model_zoo_metadata(architecture)


def _find_detector_tensors(content: Any, others: dict[str, Any]) -> list[DetectorTensor]:
    found = []
    for blob, value in others.items():
        name, tensor = get_detector_name(blob), as_tensor(value)
        if name is not None and tensor is not None:
            found.append(DetectorTensor(blob, name, _reorder_classes(name, tensor)))
    return found


CAFFE2 = Format(
    name="caffe2",
    title="Caffe2's blobs: MSRA's ResNets in Detectron2's zoo, and the first Detectron's detectors",
    branches={
        "online": (
            Layout("", _BATCH_NORM, _CONTAINERS, ("res_conv1_bn_gamma",)),
            Layout("", _ABBREVIATED_BATCH_NORM, _CONTAINERS, ("res_conv1_bn_riv",)),
            _DETECTRON1,
        )
    },
    left_out={
        "*_momentum": "the optimizer's",
        "fc1000_*": "a classifier",
        "pred_[wb]": "a classifier",
        **dict.fromkeys(
            ("conv1_b", "res*_branch1_b", "res*_branch2?_b"), "a bias before a norm, which Detectron2 ignores"
        ),
    },
    read_metadata=_read_metadata,
    find_detector_tensors=_find_detector_tensors,
    not_stored="input format and stride",
)
