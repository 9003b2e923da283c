"""What configs name and Detectron2 has not: the narrow ResNet of small machines, and a C4 head that fits its backbone.

``MODEL.BACKBONE.NAME`` is ``build_narrow_resnet_backbone`` (C4) or ``build_narrow_resnet_fpn_backbone``: the twin of
``backbones``' ``narrow_resnet``, of Detectron2's own blocks, one a stage. Detectron2's builder asserts 64 channels for
basic blocks; here stages have widths of their own.

``MODEL.ROI_HEADS.NAME`` is ``C4ROIHeads``. Detectron2's own builds three bottlenecks for ``res5`` at any depth: with it
a pretrained ResNet-18 or 34 loses its whole last stage in silence. ``SSQL_DET.EXTRA_NORM`` is MoCo's, of its detection
transfer.
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
_STEM_WIDTH = NARROW_WIDTHS[0]
_BASIC_BLOCKS = {18: 2, 34: 3}  # of the last stage, by depth


def _narrow_stage(stage: int, norm: str) -> list[CNNBlockBase]:
    """Stage 1 to 4, ``res2`` to ``res5``: one block, which halves the size but in the first."""
    before = (_STEM_WIDTH, *NARROW_WIDTHS)[stage - 1]
    stride = 1 if stage == 1 else 2
    return [BasicBlock(before, NARROW_WIDTHS[stage - 1], stride=stride, norm=norm)]


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_narrow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Stem and those stages that ``MODEL.RESNETS.OUT_FEATURES`` asks for."""
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(in_channels=input_shape.channels or 3, out_channels=_STEM_WIDTH, norm=norm)
    stages = [_narrow_stage(stage, norm) for stage in range(1, 5)]
    return ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_narrow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same below an FPN."""
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
    """``Res5ROIHeads`` whose ``res5`` has the backbone's blocks, and a norm after it where the config wants one.

    >>> C4ROIHeads._build_res5_block(cfg)[0][0].conv1.weight.shape  # of a ResNet-18
    torch.Size([512, 256, 3, 3])
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        res5, channels = cls._blocks(cfg)
        if cfg.SSQL_DET.EXTRA_NORM:
            res5.add_module("norm", get_norm(cfg.SSQL_DET.EXTRA_NORM, channels))
        return res5, channels

    @classmethod
    def _blocks(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        node: Any = cfg.MODEL.RESNETS
        if cfg.MODEL.BACKBONE.NAME in NARROW_BACKBONES:
            blocks = _narrow_stage(4, node.NORM)
        elif node.DEPTH in _BASIC_BLOCKS:
            count = _BASIC_BLOCKS[node.DEPTH]
            blocks = ResNet.make_stage(
                BasicBlock,
                count,
                stride_per_block=[2] + [1] * (count - 1),
                in_channels=4 * node.RES2_OUT_CHANNELS,
                out_channels=8 * node.RES2_OUT_CHANNELS,
                norm=node.NORM,
            )
        else:
            bottlenecks: tuple[nn.Module, int] = super()._build_res5_block(cfg)
            return bottlenecks
        return nn.Sequential(*blocks), blocks[-1].out_channels
