"""The registry of meta architectures."""

from __future__ import annotations

import torch
from torch import nn

from ...config import CfgNode, refuse_unsupported
from ...utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")


def build_model(cfg: CfgNode) -> nn.Module:
    """The model that ``MODEL.META_ARCHITECTURE`` names, on ``MODEL.DEVICE``; no weights are loaded."""
    refuse_unsupported(cfg)
    model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
