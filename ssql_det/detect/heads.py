"""A C4 head that fits the backbone. Detectron2's own builds three bottlenecks for ``res5`` at any depth.

With it a pretrained ResNet-18 or 34 loses its whole last stage in silence. The names of a config are
``MODEL.ROI_HEADS.NAME: C4ROIHeads`` and, after MoCo's detection transfer, ``SSQL_DET.EXTRA_NORM``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ssql_det.d2 import (
    ROI_HEADS_REGISTRY,
    BasicBlock,
    CfgNode,
    Res5ROIHeads,
    ResNet,
    get_norm,
)
from ssql_det.detect.narrow import NARROW_BACKBONES, narrow_stage

_BASIC_BLOCKS = {18: 2, 34: 3}  # of the last stage, by depth


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
            blocks = narrow_stage(4, node.NORM)
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
