"""The narrow ResNet of small machines as a detector's backbone: the twin of ``backbones``' ``narrow_resnet``.

Of Detectron2's own blocks, one a stage. Detectron2's builder asserts 64 channels for basic blocks; here stages have
widths of their own. ``MODEL.BACKBONE.NAME`` is ``build_narrow_resnet_backbone`` (C4) or
``build_narrow_resnet_fpn_backbone``.
"""

from __future__ import annotations

from ssql_det.backbones.build import NARROW_WIDTHS
from ssql_det.d2 import (
    BACKBONE_REGISTRY,
    FPN,
    BasicBlock,
    BasicStem,
    CfgNode,
    CNNBlockBase,
    LastLevelMaxPool,
    ResNet,
    ShapeSpec,
)

NARROW_BACKBONES = ("build_narrow_resnet_backbone", "build_narrow_resnet_fpn_backbone")
_STEM_WIDTH = NARROW_WIDTHS[0]


def narrow_stage(stage: int, norm: str) -> list[CNNBlockBase]:
    """Stage 1 to 4, ``res2`` to ``res5``: one block, which halves the size but in the first."""
    before = (_STEM_WIDTH, *NARROW_WIDTHS)[stage - 1]
    stride = 1 if stage == 1 else 2
    return [BasicBlock(before, NARROW_WIDTHS[stage - 1], stride=stride, norm=norm)]


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_narrow_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Stem and those stages that ``MODEL.RESNETS.OUT_FEATURES`` asks for."""
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(in_channels=input_shape.channels or 3, out_channels=_STEM_WIDTH, norm=norm)
    stages = [narrow_stage(stage, norm) for stage in range(1, 5)]
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
