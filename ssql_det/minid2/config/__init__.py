"""Configs: Detectron2's tree of defaults, and classes that can be built from it."""

from .config import CfgNode, configurable, get_cfg
from .supported import refuse_unsupported

__all__ = ["CfgNode", "configurable", "get_cfg", "refuse_unsupported"]
