"""Modules that Detectron2 does not have: a ResNet with few channels, and a C4 head for any ResNet backbone.

``MODEL.BACKBONE.NAME`` ``build_narrow_resnet_backbone`` (C4) or ``build_narrow_resnet_fpn_backbone`` builds the
``narrow_resnet`` of ``ssql_det.backbones`` from Detectron2's blocks, one per stage. Detectron2's own builder asserts
``RES2_OUT_CHANNELS`` = 64 for basic blocks; here each stage has its own number of channels.

``MODEL.ROI_HEADS.NAME`` ``C4ROIHeads`` builds ``res5`` from the backbone's type of blocks. Detectron2's
``Res5ROIHeads`` always builds three bottlenecks, so a pretrained ResNet-18 or 34 would silently lose its last stage.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ssql_det.backbones.build import NARROW_WIDTHS
from ssql_det.d2 import (
    BACKBONE_REGISTRY,
    FPN,
    ROI_HEADS_REGISTRY,
    BasicBlock,
    BasicStem,
    CfgNode,
    CNNBlockBase,
    LastLevelMaxPool,
    Res5ROIHeads,
    ResNet,
    ShapeSpec,
    get_norm,
)

NARROW_BACKBONES = ("build_narrow_resnet_backbone", "build_narrow_resnet_fpn_backbone")
_STEM_CHANNELS = NARROW_WIDTHS[0]  # NARROW_WIDTHS: output channels of the four stages
_NUM_RES5_BLOCKS = {18: 2, 34: 3}  # by the depth of a ResNet with basic blocks


def _build_narrow_stage(stage: int, norm: str) -> list[CNNBlockBase]:
    """One block; the stages 1 to 4 are ``res2`` to ``res5``, and all except the first halve the resolution."""
    in_channels = (_STEM_CHANNELS, *NARROW_WIDTHS)[stage - 1]
    stride = 1 if stage == 1 else 2
    return [BasicBlock(in_channels, NARROW_WIDTHS[stage - 1], stride=stride, norm=norm)]


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_narrow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The backbone of a C4 detector, up to the last of ``MODEL.RESNETS.OUT_FEATURES``."""
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(in_channels=input_shape.channels or 3, out_channels=_STEM_CHANNELS, norm=norm)
    stages = [_build_narrow_stage(stage, norm) for stage in range(1, 5)]
    return ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_narrow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The backbone of an FPN detector."""
    return FPN(
        bottom_up=build_narrow_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@ROI_HEADS_REGISTRY.register()
class C4ROIHeads(Res5ROIHeads):
    """``Res5ROIHeads`` whose ``res5`` has the backbone's type of blocks.

    ``SSQL_DET.EXTRA_NORM`` adds a norm after ``res5``, as in MoCo's transfer to detection (He et al., CVPR 2020).
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        res5, channels = cls._build_res5_without_extra_norm(cfg)
        if cfg.SSQL_DET.EXTRA_NORM:
            res5.add_module("norm", get_norm(cfg.SSQL_DET.EXTRA_NORM, channels))
        return res5, channels

    @classmethod
    def _build_res5_without_extra_norm(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        resnet_cfg: Any = cfg.MODEL.RESNETS
        if cfg.MODEL.BACKBONE.NAME in NARROW_BACKBONES:
            blocks = _build_narrow_stage(4, resnet_cfg.NORM)
        elif resnet_cfg.DEPTH in _NUM_RES5_BLOCKS:
            num_blocks = _NUM_RES5_BLOCKS[resnet_cfg.DEPTH]
            blocks = ResNet.make_stage(
                BasicBlock,
                num_blocks,
                stride_per_block=[2] + [1] * (num_blocks - 1),
                in_channels=4 * resnet_cfg.RES2_OUT_CHANNELS,
                out_channels=8 * resnet_cfg.RES2_OUT_CHANNELS,
                norm=resnet_cfg.NORM,
            )
        else:
            res5_and_channels: tuple[nn.Module, int] = super()._build_res5_block(cfg)
            return res5_and_channels
        return nn.Sequential(*blocks), blocks[-1].out_channels
