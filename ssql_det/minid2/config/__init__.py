"""Detectron2's default config, and classes that can be built from a config."""

from .config import CfgNode, configurable, get_cfg
from .supported import refuse_unsupported

__all__ = ["CfgNode", "configurable", "get_cfg", "refuse_unsupported"]
