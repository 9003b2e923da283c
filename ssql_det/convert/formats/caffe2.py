"""Caffe2's blobs, ``.pkl``: MSRA's ResNets in Detectron2's model zoo, and the detectors of the first Detectron.

Names run together with underscores; a block's convs are ``branch2a`` to ``branch2c``, its shortcut ``branch1``. With
the first Detectron norms are an affine layer (``_bn_s``, ``_bn_b``), for which FrozenBN stands with mean 0 and variance
1, and the background is the first class, in Detectron2 the last.

Does not carry: running statistics of an affine norm; anything about images or strides, which are MSRA's by custom.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssql_det.convert.architecture import Architecture
from ssql_det.convert.checkpoint import InputFormat, Metadata, customary_in_zoo
from ssql_det.convert.format import Format, Found, Layout, Names, Part, as_tensor


def _names(**norm_leaves: str) -> Names:
    return Names(
        stem="conv1",
        stem_norm="res_conv1_bn",
        conv="res{stage}_{block}_branch2{conv}",
        norm="res{stage}_{block}_branch2{conv}_bn",
        shortcut="res{stage}_{block}_branch1",
        shortcut_norm="res{stage}_{block}_branch1_bn",
        first_stage=2,
        convs="abc",
        conv_leaves={"weight": "_w"},
        norm_leaves=norm_leaves,
    )


_NORMALIZED = _names(weight="_gamma", bias="_beta", running_mean="_running_mean", running_var="_running_var")
_SHORT = _names(weight="_s", bias="_b", running_mean="_rm", running_var="_riv")
_AFFINE = _names(weight="_s", bias="_b")
_FROZEN: dict[str, Callable[[tuple[int, ...]], Tensor]] = {  # as FrozenBN has them at first
    "running_mean": torch.zeros,
    "running_var": lambda shape: torch.ones(shape) - 1e-5,
}
_CONTAINERS = ("blobs", "")
_FIRST = Layout("", _AFFINE, _CONTAINERS, ("res_conv1_bn_s",), computed=_FROZEN)
_DETECTRON1 = InputFormat("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))

_PARTS = (  # of a detector: a pattern, and Detectron2's name; "w" and "b" follow
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
_LEAVES = {"w": "weight", "b": "bias"}


def detector_name(blob: str) -> str | None:
    """
    >>> detector_name("fpn_inner_res4_5_sum_lateral_w")
    'backbone.fpn_lateral4.weight'
    """
    for pattern, name in _PARTS:
        if match := re.fullmatch(rf"{pattern}_([wb])", blob):
            return f"{match.expand(name)}.{_LEAVES[match[match.lastindex or 0]]}"
    return None


def _without_background_first(name: str, tensor: Tensor) -> Tensor:
    """Classes as Detectron2 counts them: no background among boxes and masks, and the last among the scores."""
    if ".bbox_pred." in name:
        return tensor[4:]
    if ".mask_head.predictor." in name:
        return tensor[1:]
    return tensor.roll(-1, dims=0) if ".cls_score." in name else tensor


def _facts(content: Any, found: Found, architecture: Architecture) -> Metadata:
    if found.layout is _FIRST:
        return Metadata(_DETECTRON1, stride_in_1x1=architecture.groups == 1)
    return customary_in_zoo(architecture)


def _parts(content: Any, leftover: dict[str, Any]) -> list[Part]:
    parts = []
    for blob, value in leftover.items():
        name, tensor = detector_name(blob), as_tensor(value)
        if name is not None and tensor is not None:
            parts.append(Part(blob, name, _without_background_first(name, tensor)))
    return parts


CAFFE2 = Format(
    name="caffe2",
    title="Caffe2's blobs: MSRA's ResNets in Detectron2's zoo, and the first Detectron's detectors",
    branches={
        "online": (
            Layout("", _NORMALIZED, _CONTAINERS, ("res_conv1_bn_gamma",)),
            Layout("", _SHORT, _CONTAINERS, ("res_conv1_bn_riv",)),
            _FIRST,
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
    metadata=_facts,
    rest=_parts,
    note="anything about images or strides",
)
